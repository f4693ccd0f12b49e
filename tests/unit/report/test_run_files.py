"""Files that an earlier config made stay in a run's folder, but not in its report."""

import shutil
from pathlib import Path

import pytest
from synthetic_run import PRIMARY, settings_of

from tangram.report.data import Settings
from tangram.report.loading import load_results
from tangram.report.run_files import RunFiles

OTHER = "speed-1.4"


def without(**changes: object) -> Settings:
    return settings_of().model_copy(update=changes)


@pytest.fixture(scope="module")
def folder(complete: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with files that its config may or may not ask for."""
    folder = Path(shutil.copytree(complete, tmp_path_factory.mktemp("run") / "run"))
    for name in ("tasks.parquet", "readout.parquet"):
        shutil.copy(folder / "targets" / PRIMARY / "0" / name, folder / "targets" / OTHER / "0" / name)
    for job in (f"solve_mip/{OTHER}", f"finetune_child/{OTHER}/0", "distill_blocks/ffn/width-0.5/00-29"):
        path = folder / "benchmarks" / f"{job}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("s\th:m:s\n100.0\t0:01:40\n")
    return folder


def test_all_files_count_with_a_config_that_asks_for_them(folder: Path) -> None:
    ours, everything = load_results(folder, settings_of()), load_results(folder)
    for table in ("library", "evaluations", "finetuning", "benchmarks", "scores", "costs"):
        assert len(getattr(ours, table)) == len(getattr(everything, table)) > 0
    assert set(ours.children) == set(everything.children)


def test_a_target_that_the_config_lacks_is_left_out(folder: Path) -> None:
    settings = settings_of()
    targets = tuple(target for target in settings.targets if target != OTHER)
    results = load_results(folder, without(targets=targets, children=dict.fromkeys(targets, settings.children[OTHER])))
    assert results.children
    for frame in (results.evaluations, results.finetuning, results.tasks):
        assert len(frame)
        assert OTHER not in set(frame["target"])
    keys = [*results.children, *results.architectures, *results.solutions]
    assert OTHER not in {target for target, _ in keys}
    assert not set(results.benchmarks["rule"]) & {"solve_mip", "finetune_child"}


def test_a_rival_that_the_config_lacks_is_left_out(folder: Path) -> None:
    children = {**settings_of().children, PRIMARY: ("0", "uniform-int8")}
    results = load_results(folder, without(children=children))
    assert {solution for target, solution in results.children if target == PRIMARY} == {"0", "uniform-int8"}
    assert {solution for target, solution in results.children if target == OTHER} == {"0", "layers-dropped"}
    assert (PRIMARY, "layers-dropped") not in results.solutions
    assert (PRIMARY, "uniform-int8") in results.solutions
    results = load_results(folder, without(children={**children, PRIMARY: ("0",)}))
    assert (PRIMARY, "0") in results.solutions
    assert (PRIMARY, "uniform-int8") not in results.solutions


def test_a_variant_that_the_config_lacks_is_left_out(folder: Path) -> None:
    library = {**settings_of().library, "ffn": ("linear", "no-op")}
    results = load_results(folder, without(library=library))
    found = results.library.groupby("kind")["variant"].unique()
    assert set(found["ffn"]) == {"linear", "no-op"}
    assert {"gqa-1", "parent@int8"} < set(found["attention"])
    assert not results.distillation["series"].str.contains("width").any()
    assert 100.0 not in results.benchmarks[results.benchmarks["rule"] == "distill_blocks"]["seconds"].tolist()


def test_tables_that_the_config_does_not_ask_for_are_left_out(folder: Path) -> None:
    assert len(load_results(folder, settings_of()).readouts)
    results = load_results(folder, without(optional=()))
    assert results.readouts.empty
    assert results.tasks.empty
    assert results.samples, "the held-out sequences"


def test_tasks_of_an_earlier_primary_target_are_left_out(folder: Path) -> None:
    everything, results = load_results(folder), load_results(folder, settings_of())
    assert {target for target, *_ in everything.readouts[["target"]].to_numpy()} - {""} == {PRIMARY, OTHER}
    assert set(results.readouts["target"]) - {""} == {PRIMARY}


@pytest.mark.parametrize("place", ["costs", "calibration"])
def test_tables_of_an_engine_without_a_target_are_left_out(place: str, folder: Path) -> None:
    files = RunFiles(folder, settings_of())
    assert files.belongs(folder / place / "torch.parquet")
    assert not files.belongs(folder / place / "llama.cpp.parquet")
    elsewhere = RunFiles(folder, without(engines=dict.fromkeys(settings_of().targets, "llama.cpp")))
    assert elsewhere.belongs(folder / place / "llama.cpp.parquet")
    assert not elsewhere.belongs(folder / place / "torch.parquet")
    assert elsewhere.belongs(folder / "speeds" / "torch.parquet"), "children are also timed in torch"
    for path in ("parent_engine.parquet", f"targets/{PRIMARY}/0/engine.parquet"):
        assert not files.belongs(folder / path)
        assert elsewhere.belongs(folder / path)
