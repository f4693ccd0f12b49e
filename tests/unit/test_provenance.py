"""The code hash: a comment reruns nothing, a real change its dependants and only those."""

import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tangram import provenance
from tangram.blocks import Variant, registry
from tangram.blocks.registry import modules_of_variants
from tangram.config import reruns
from tangram_studies.code import modules_of_study

VARIANTS = [Variant(family) for family in registry()]
COMMANDS = sorted(path.stem for path in (provenance.ROOT / "commands").glob("[!_]*.py"))
STUDIES_ROOT = provenance.ROOT.parent / "tangram_studies"
# Training and quantization of a piece share its inputs and its loss; moments are those of the inputs.
TRAINED = ("distill_blocks", "distill_pairs", "quantize_blocks")
DISTILLS = {f"{rule}{v}" for rule in TRAINED for v in ("", *(f" {v}" for v in VARIANTS))} | {"measure_moments"}
FINETUNES = {"finetune_child", "iterate_child", "select_child", "try_text"}
STUDIES = sorted(path.stem for path in (STUDIES_ROOT / "papers").glob("[!_]*"))


def _forget() -> None:
    parts = (provenance._digest_and_imports, provenance._digests, provenance._source)
    for cached in (provenance.modules_of, provenance.code_hash, *parts):
        cached.cache_clear()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of copies of the packages that may be edited, hashed in place of the real ones."""
    for root in (provenance.ROOT, STUDIES_ROOT):
        shutil.copytree(root, tmp_path / root.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "tangram")
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # only what is edited is parsed again
    monkeypatch.setattr(provenance, "_package", lambda name: tmp_path / name / "__init__.py")
    _forget()
    yield tmp_path
    _forget()


@pytest.fixture
def changed_by(packages: Path) -> Callable[..., set[str]]:
    """Return the commands whose hash an edit of one module changes; of those of one variant, with its family."""

    def hashes(package: str) -> dict[str, str]:
        _forget()

        def code_hash(command: str, *others: str) -> str:
            engines = reruns.IN_AN_ENGINE.get(command, {})
            return provenance.code_hash(f"tangram.commands.{command}", *others, *engines.values())

        plain = {name: code_hash(name) for name in COMMANDS}
        families = {
            f"{name} {variant}": code_hash(name, *modules_of_variants([variant]))
            for name in reruns.OF_A_VARIANT
            for variant in VARIANTS
        }
        if package == "tangram":
            return plain | families
        studies = {f"study_{name}": provenance.code_hash(*modules_of_study(name)) for name in STUDIES}
        return plain | families | studies

    before = functools.cache(hashes)  # of the packages as they are

    def change(module: str, edit: Callable[[str], str], package: str = "tangram") -> set[str]:
        unchanged, path = before(package), packages / package / module
        text = path.read_text()
        path.write_text(edit(text))
        after = hashes(package)
        path.write_text(text)
        return {name for name in after if unchanged[name] != after[name]}

    return change


def _real(text: str) -> str:
    return f"{text}\nADDED = 1\n"


def test_comments_docstrings_and_layout_change_nothing(changed_by: Callable) -> None:
    def edit(text: str) -> str:
        return text.replace('"""', '"""Another docstring. ', 1) + "\n\n\n# a comment\n"

    assert changed_by("scores/replace_one.py", edit) == set()
    assert changed_by("commands/score_blocks.py", edit) == set()


def test_a_real_change_reaches_its_dependants_only(changed_by: Callable) -> None:
    assert changed_by("commands/solve_mip.py", _real) == {"solve_mip"}
    scored = {f"{rule}{v}" for rule in ("score_blocks", "score_tasks") for v in ("", *(f" {v}" for v in VARIANTS))}
    scored |= {"score_layers", "score_screened", "evolve_child", "iterate_child"}
    assert changed_by("scores/replace_one.py", _real) == scored
    assert changed_by("library/distill.py", _real) == DISTILLS
    assert changed_by("finetune.py", _real) == FINETUNES
    assert changed_by("search/program.py", _real) >= {"solve_mip"}
    assert changed_by("report/page.py", _real) == {"build_report"}


def test_a_change_in_a_study_reaches_it_alone(changed_by: Callable) -> None:
    assert changed_by("papers/ntk/cost.py", _real, "tangram_studies") == {"study_ntk"}
    assert changed_by("papers/butterfly/speed.py", _real, "tangram_studies") == {"study_butterfly"}
    assert changed_by("study.py", _real, "tangram_studies") == {f"study_{name}" for name in STUDIES}


def test_what_packages_register_is_code_of_its_users(changed_by: Callable) -> None:
    users = {"bandits/dueling.py": {"select_child"}, "metric_learning/readouts.py": {"evaluate_readout"}}
    users |= {"metric_learning/spans.py": {*DISTILLS, *FINETUNES}}
    for module, commands in users.items():
        changed = changed_by(module, _real, "tangram_studies")
        assert {name for name in changed if not name.startswith("study_")} == commands


def test_imports_inside_functions_and_of_imports_count(changed_by: Callable) -> None:
    loads_models = {"capture_activations", "distill_blocks", "score_blocks", "finetune_child", "evaluate_model"}
    assert changed_by("models/loading.py", _real) >= loads_models
    assert changed_by("tables.py", _real) >= {"solve_mip", "collect_tables", "score_blocks", "build_report"}


@pytest.mark.parametrize("family", ["no-op", "parent"])
def test_every_cost_is_measured_with_a_parent_and_no_ops(family: str, changed_by: Callable) -> None:
    costs = {"calibrate_costs", "measure_costs", *(f"measure_costs {variant}" for variant in VARIANTS)}
    changed = changed_by(f"blocks/{family.replace('-', '_')}.py", _real)
    assert changed == {f"{rule} {family}" for rule in (*TRAINED, "score_blocks", "score_tasks")} | costs


@pytest.mark.parametrize("family", ["width", "gqa", "linear"])
def test_a_block_changes_the_hashes_of_its_own_variants(family: str, changed_by: Callable) -> None:
    subclasses = {"linear": ["linear-unbiased"], "gqa": ["gqa-mean"]}  # in modules of their own
    families = [family, *subclasses.get(family, [])]
    expected = {f"{rule} {name}" for rule in reruns.OF_A_VARIANT for name in families}
    assert changed_by(f"blocks/{family}.py", _real) == expected


def test_what_blocks_share_changes_the_hashes_of_all(changed_by: Callable) -> None:
    of_variants = {f"{name} {variant}" for name in reruns.OF_A_VARIANT for variant in VARIANTS}
    assert changed_by("blocks/base.py", _real) >= of_variants


def test_imports_for_type_checkers_are_no_code(changed_by: Callable) -> None:
    changed = changed_by("blocks/calibration.py", _real)
    assert {"distill_blocks gqa", "score_blocks linear"} <= changed
    assert not {"score_blocks constant", "measure_costs width", "evaluate_model", "solve_mip"} & changed


def test_a_module_of_another_package_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "half.py").write_text("from tangram.blocks.base import Block\nfrom .numbers import HALF\n")
    (folder / "numbers.py").write_text("HALF = 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    modules = provenance.modules_of("tangram.commands.score_blocks", "extension.half")
    assert {"extension.half", "extension.numbers", "tangram.blocks.base"} <= modules.keys()
    before = provenance.code_hash("tangram.commands.score_blocks", "extension.half")
    (folder / "numbers.py").write_text("HALF = 0.25\n")
    _forget()
    assert provenance.code_hash("tangram.commands.score_blocks", "extension.half") != before


def test_the_config_is_no_code(changed_by: Callable) -> None:
    for module in (
        "config/__init__.py",
        "config/limits.py",
        "errors.py",
        "provenance.py",
        "__init__.py",
        "config/documentation.py",
    ):
        assert changed_by(module, _real) == set()


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"tangram\.commands\.nothing is not a module"):
        provenance.code_hash("tangram.commands.nothing")


def test_provenance_is_flat_text_without_time_host_or_path() -> None:
    first, again = (provenance.provenance("tangram.commands.solve_mip", {"b": 1, "a": 2}) for _ in range(2))
    assert first == again
    assert all(isinstance(value, str) for value in first.values())
    assert first["tangram.settings"] == '{"a": 2, "b": 1}'
    assert first["tangram.code"] == provenance.code_hash("tangram.commands.solve_mip")
    assert str(Path.cwd()) not in "".join(first.values())
    assert "torch" in provenance.versions()


def test_a_fingerprint_covers_facts_and_contents_not_places(tmp_path: Path) -> None:
    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / name).write_text(text)
    first = provenance.fingerprint(["a", "b"], [tmp_path / "one"])
    assert first == provenance.fingerprint(["a", "b"], [tmp_path / "two"])
    others = [(["a", "c"], "one"), (["ab"], "one"), (["a", "b"], "three")]
    assert first not in {provenance.fingerprint(facts, [tmp_path / name]) for facts, name in others}
