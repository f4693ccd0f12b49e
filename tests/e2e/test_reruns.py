"""Partial reruns of a finished run: for every key and every module, Snakemake plans exactly the jobs of the table."""

import copy
import os
import re
import shutil
import subprocess
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from tiny_run import ROOT, Run, shown_jobs, snakemake

from tangram.blocks import block_class
from tangram.config import Config, parse, reruns

pytestmark = pytest.mark.slow

Job = tuple[str, str]  # rule and wildcards


def jobs_of(printed: str) -> set[Job]:
    """Return the jobs that Snakemake ran or planned."""
    wildcards = r"\w+=\S+$|wildcards: .*"
    return {(rule, next(iter(re.findall(wildcards, shown)), "")) for rule, shown in shown_jobs(printed)}


def ran(printed: str) -> set[str]:
    """Return the rules that a run executed."""
    return {rule for rule, _ in jobs_of(printed)}


def node(job: Job) -> str:
    """Return a job's name in the table: its rule, and its split, its engine or whose weights its pieces have."""
    rule, wildcards = job
    if rule == "score_blocks" and "kind=block" in wildcards:
        return f"{rule} pairs"
    if rule in ("quantize_blocks", "score_blocks", "score_tasks"):
        of = "quantized" if rule != "quantize_blocks" and "@" in wildcards else "trained"
        return f"{rule} {'parent' if 'variant=parent@' in wildcards else of}"
    part = re.search(r"\b(?:split|engine)=([\w.]+)", wildcards)
    return f"{rule} {part[1]}" if part else rule


def expected(jobs: set[Job], first: tuple[str, ...]) -> set[Job]:
    """Return the jobs that rerun, by the table, after the rules ``first``."""
    first = tuple(rule for rule in first if any(node(job) == rule for job in jobs))  # rules of this run
    searches = {"solve_mip": "=0", "uniform_precision": "=uniform-"}
    searches |= dict.fromkeys(("score_layers", "drop_layers"), "=layers-dropped")
    anyway = reruns.onward(rule for rule in first if rule not in searches)
    searched = reruns.onward(rule for rule in first if rule in searches)
    # A search reaches only its own solutions: the solver's children do not depend on the baselines'.
    solutions = {f"solution{solution}" for rule, solution in searches.items() if rule in first}
    return {
        job
        for job in jobs
        if node(job) in anyway
        or (node(job) in searched and ("solution=" not in job[1] or any(solution in job[1] for solution in solutions)))
    }


def expected_of_module(jobs: set[Job], module: str, variants: list[str]) -> set[Job]:
    """Return the jobs that rerun, by the table, if a module changes; for some rules, those of some variants."""
    first = reruns.first_of_module(module, variants)
    of_a_variant = [rule for rule in reruns.READS if rule.split()[0] in reruns.OF_A_VARIANT]
    anyway = reruns.onward(rule for rule in first if rule not in (*of_a_variant, "measure_moments"))
    of_moments = reruns.onward({"measure_moments"} & set(first))  # of the variants that are fitted from moments

    def reached(job: Job) -> bool:
        rule, wildcards = job
        if rule not in reruns.OF_A_VARIANT or node(job) in anyway:
            return True
        variant = re.search(r"variant=([^,]+)", wildcards)[1]
        if node(job) in of_moments and block_class(variant).uses_moments:
            return True
        return node(job) in reruns.onward(r for r in of_a_variant if reruns.imports(r, module, [variant]))

    return {job for job in expected(jobs, first) if reached(job)}


class Planner:
    """A finished run, a copy of the repository, and Snakemake's plan for both."""

    def __init__(self, run: Run, folder: Path, repository: Path):
        self.run, self.folder, self.repository = run, folder, repository

    def __call__(self, config: dict | None = None, *arguments: str) -> set[Job]:
        environment = os.environ | {"PYTHONPATH": str(self.repository / "workflow")}
        done = snakemake(
            self.folder, config or self.run.config, "-n", *arguments, environment=environment, root=self.repository
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs_of(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def planners(run: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Planner]:
    """Two planners for parallel work, each with a copy of the run and of the repository."""
    found = []
    for name in ("one", "other"):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(run.folder, folder / "run", symlinks=True)
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
        for path in tracked or sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".git" not in p.parts):
            if (ROOT / path).is_file():
                (folder / "repository" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, folder / "repository" / path)
        found.append(Planner(run, folder / "run", folder / "repository"))
    return found


@pytest.fixture(scope="module")
def planner(planners: list[Planner]) -> Planner:
    return planners[0]


@pytest.fixture(scope="module")
def all_jobs(run: Run) -> set[Job]:
    return jobs_of(run.printed)


def leaves(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of the config that is not a section, with its annotation; names of a mapping are `<name>`."""
    for name, field in section.model_fields.items():
        where = f"{path}{name}"
        inner = [field.annotation, *typing.get_args(field.annotation)]
        models = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if typing.get_origin(field.annotation) is dict:
            where, models = f"{where}.<name>", models[-1:]
        if len(models) == 1 and type(None) not in inner and typing.get_origin(field.annotation) is not tuple:
            yield from leaves(models[0], f"{where}.")
        else:
            yield where, field.annotation


# Another valid value for every key whose type does not imply one; None for keys that other tests cover (see below).
OTHERS: dict[str, Any] = {
    "run": None,
    **dict.fromkeys(("device", "dtype")),  # some precisions go with another value
    "parent.source": {"type": "hub", "repo": "some/parent", "revision": "main"},
    # A fetched checkpoint determines these, so no other value is valid.
    **dict.fromkeys(("parent.num_layers", "parent.num_attention_heads", "parent.num_kv_heads")),
    "parent.sizes": {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8},
    **{f"corpus.{split}.sources": [{"type": "python-docs"}] for split in ("distill", "score", "finetune", "heldout")},
    **{f"corpus.{split}.sequence_length": 16 for split in ("distill", "score", "finetune", "heldout")},
    **dict.fromkeys(("text_trials.sources.<name>", "text_trials.draws")),  # jobs come and go
    "activations.mode": None,  # it removes the cache's jobs
    "library.attention": None,
    "library.ffn": None,
    "library.head": None,
    **dict.fromkeys(f"library.precisions.{kind}" for kind in ("attention", "ffn", "head")),
    "library.coupled.pairs": None,
    "library.layers_per_shard": None,
    "scores.method": None,
    "scores.tasks": {"names": ["numbers"], "questions": 2},
    "scenarios.<name>.batch_sizes": [2],
    "targets.<name>.constraints": [{"quantity": "parameters", "max": 0.85}],
    "search.objective": "lm_loss_increase",
    "targets.<name>.objective": {"kl": 1, "cosine_distance": 2},
    "targets.<name>.solutions": None,
    "targets.<name>.compare_layers_dropped": None,
    "targets.<name>.compare_uniform": None,
    "targets.<name>.compare": None,
    "assembly.ridge": None,  # it counts with `compensate`
    "search.evolution.shares": [0.5, 1.0],
    "targets.<name>.selection": None,
    "targets.<name>.rounds": None,
    "evaluation.readout.task": None,
    "studies.image_file": "images.npz",
    "primary_target": None,
    **dict.fromkeys(("targets.<name>.engine", "targets.<name>.export")),  # another engine's or format's jobs come
    "finetune.budget.epochs": 2,
    **dict.fromkeys(("finetune.budget.tokens", "finetune.budget.minutes")),  # one unit at a time
    "finetune.batch_size": 4,
    "finetune.micro_batch_size": 1,
    "finetune.parallel.nodes": 2,
    "finetune.parallel.strategy": None,  # fsdp is refused with precisions; it is in one parameter with the nodes
    "evaluation.tasks": ["numbers", "others"],
    "evaluation.task_archive": {"package": "bigbench==1.0.1", "format": "sdist", "archive_sha256": "0" * 64},
    "evaluation.task_limit": 3,
    "evaluation.perplexity": [{"name": "text", "source": {"type": "hub", "repo": "some/text"}, "max_length": 16}],
    "evaluation.long_context": {"lengths": [124], "tasks": ["needle"], "choices": 2, "questions": 4},
    "evaluation.readout.labels": [1, 5],
    "finetune.span_contrast.depths": [0.5, 1.0],
    "library.bld.span_contrast.depths": [0.5, 1.0],
    "studies.image_archive.archive_sha256": "0" * 64,
}


def other_value(key: str, annotation: Any, value: Any) -> Any:
    """Return a value that differs from the current one."""
    if key in OTHERS:
        return OTHERS[key]
    if typing.get_origin(annotation) is typing.Literal:
        return next(choice for choice in typing.get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}1"
    if isinstance(value, list):
        return [*value, value[-1]]
    return value + 1 if isinstance(value, int) else value * 0.9 or 0.1


def changed(config: dict, key: str, annotation: Any) -> dict:
    """Return the config with another value under a key."""
    complete = parse(config).model_dump(mode="json")
    names = {"targets": "small", "scenarios": "chat"}
    path = [names[key.split(".")[0]] if part == "<name>" else part for part in key.split(".")]
    section, result = complete, copy.deepcopy(config)
    place: Any = result
    for part in path[:-1]:
        section = section[part]
        place = place.setdefault(part, copy.deepcopy(section))
    place[path[-1]] = other_value(key, annotation, section[path[-1]])
    return result


LEAVES = dict(leaves(Config))
CHECKED = [key for key in LEAVES if key not in OTHERS or OTHERS[key] is not None]


def side_by_side(planners: list[Planner], tasks: list[Callable[[Planner], set[Job]]]) -> list[set[Job]]:
    """Run tasks on the planners in parallel."""
    free = list(planners)

    def work(task: Callable[[Planner], set[Job]]) -> set[Job]:
        planner = free.pop()
        try:
            return task(planner)
        finally:
            free.append(planner)

    with ThreadPoolExecutor(len(planners)) as pool:
        return list(pool.map(work, tasks))


def without_effect_together(names: list[str], first: Callable[[str], tuple[str, ...]]) -> list[list[str]]:
    """Return the names one by one, except those that rerun nothing by the table, which share one plan."""
    together = [name for name in names if not first(name)]
    return [together, *([name] for name in names if name not in together)]


@pytest.fixture(scope="module")
def plans_by_key(planners: list[Planner], run: Run) -> dict[str, set[Job]]:
    def change(keys: list[str]) -> Callable[[Planner], set[Job]]:
        config = run.config
        for key in keys:
            config = changed(config, key, LEAVES[key])
        return lambda plan: plan(config)

    groups = without_effect_together(CHECKED, reruns.first_of_key)
    plans = side_by_side(planners, [change(keys) for keys in groups])
    return {key: plan for keys, plan in zip(groups, plans, strict=True) for key in keys}


def is_pruned(wildcards: str) -> bool:
    return block_class(re.search(r"variant=([^,]+)", wildcards)[1]).pruned


@pytest.mark.parametrize("key", CHECKED)
def test_a_key_reruns_what_the_table_says(key: str, plans_by_key: dict[str, set[Job]], all_jobs: set[Job]) -> None:
    jobs = all_jobs
    if key.startswith("library.pruning"):  # it reaches the variants that remove channels or heads
        jobs = {(rule, which) for rule, which in jobs if rule != "distill_blocks" or is_pruned(which)}
    assert plans_by_key[key] == expected(jobs, reruns.first_of_key(key))


def test_every_row_of_the_table_was_put_to_the_test() -> None:
    rows = {reruns.first_of_key(key) for key in CHECKED}
    assert {key for key, first in reruns.KEYS.items() if first not in rows} <= {
        "activations.mode",
        "device",
        "targets.<name>.selection",
    }
    assert all(key in LEAVES for key in OTHERS)


def test_nothing_changed_nothing_runs(planner: Planner) -> None:
    assert planner() == set()


@pytest.fixture(scope="module")
def plans_by_module(planners: list[Planner]) -> dict[str, set[Job]]:
    def change(modules: list[str]) -> Callable[[Planner], set[Job]]:
        def task(plan: Planner) -> set[Job]:
            paths = [plan.repository / "workflow" / Path(*module.split(".")) for module in modules]
            paths = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]
            sources = {path: path.read_text() for path in paths}
            for path, source in sources.items():
                path.write_text(f"{source}\nCHANGED = True\n")
            try:
                return plan()
            finally:
                for path, source in sources.items():
                    path.write_text(source)

        return task

    groups = without_effect_together(reruns.modules(), reruns.first_of_module)
    plans = side_by_side(planners, [change(modules) for modules in groups])
    return {module: plan for modules, plan in zip(groups, plans, strict=True) for module in modules}


@pytest.mark.parametrize("module", reruns.modules())
def test_a_module_reruns_what_the_table_says(
    module: str, plans_by_module: dict[str, set[Job]], all_jobs: set[Job], run: Run
) -> None:
    variants = [name for kind in ("attention", "ffn", "head") for name in run.config["library"].get(kind, [])]
    assert plans_by_module[module] == expected_of_module(all_jobs, module, variants)


def test_a_block_reruns_its_own_pieces_and_no_others(plans_by_module: dict[str, set[Job]]) -> None:
    of_a_variant = {job for job in plans_by_module["tangram.blocks.linear"] if job[0] in reruns.OF_A_VARIANT}
    assert {rule for rule, _ in of_a_variant} == set(reruns.OF_A_VARIANT) - {"quantize_blocks", "distill_pairs"}
    assert all("variant=linear" in wildcards for _, wildcards in of_a_variant)


def test_a_comment_in_every_module_reruns_nothing(planner: Planner) -> None:
    sources = {path: path.read_text() for path in (planner.repository / "workflow").rglob("*.py")}
    for path, source in sources.items():
        path.write_text(f"# Said before.\n{source}\n\n# And after.\n")
    try:
        assert planner() == set()
    finally:
        for path, source in sources.items():
            path.write_text(source)


def test_the_pages_template_reruns_the_report(planner: Planner) -> None:
    path = planner.repository / "workflow" / "report" / "report.html.j2"
    source = path.read_text()
    path.write_text(source + "\n")
    try:
        assert ran_rules(planner()) == {"build_report"}
    finally:
        path.write_text(source)


def ran_rules(jobs: set[Job]) -> set[str]:
    return {rule for rule, _ in jobs}


def onward(jobs: set[Job], *first: str) -> set[str]:
    """Return ``first`` and the rules that depend on them, by the table, as far as the run has them."""
    return {rule.split()[0] for rule in reruns.onward(first) if any(node(job) == rule for job in jobs)}


def test_a_new_variant_reruns_its_jobs_and_readers_of_the_tables(
    planner: Planner, run: Run, all_jobs: set[Job]
) -> None:
    library = run.config["library"]
    plan = planner(run.config | {"library": library | {"ffn": [*library["ffn"], "width-0.5"]}})
    own = {job for job in plan if job[0] in ("distill_blocks", "score_blocks", "score_tasks", "measure_costs")}
    assert len(own) == 4
    assert all("width-0.5" in wildcards for _, wildcards in own)
    assert ran_rules(plan - own) == onward(all_jobs, "collect_scores", "collect_costs torch")


OF_ALL_CHILDREN = {"measure_speed", "write_card", "build_report"}  # one job times all children


def test_a_new_target_costs_its_own_jobs_and_the_report(planner: Planner, run: Run, all_jobs: set[Job]) -> None:
    targets = run.config["targets"]
    plan = planner(run.config | {"targets": targets | {"more": targets["small"]}})
    assert ("build_report", "") in plan
    assert all("target=more" in wildcards for rule, wildcards in plan if rule not in OF_ALL_CHILDREN)
    only_primary = {"evaluate_tasks", "evaluate_perplexity", "evaluate_long_context", "uniform_precision"}
    assert ran_rules(plan) == onward(all_jobs, "solve_mip", "drop_layers") - only_primary


def test_a_target_without_its_baseline_reruns_speeds_and_report(planner: Planner, run: Run, all_jobs: set[Job]) -> None:
    small = run.config["targets"]["small"] | {"compare_layers_dropped": False}
    assert ran_rules(planner(run.config | {"targets": {"small": small}})) == OF_ALL_CHILDREN & ran_rules(all_jobs)


def test_another_run_is_made_from_the_beginning(planner: Planner, run: Run, all_jobs: set[Job]) -> None:
    assert ran_rules(planner(run.config | {"run": "other"})) == ran_rules(all_jobs)


@pytest.mark.parametrize(("key", "value", "refused"), [("device", "cuda", "@int8"), ("dtype", "bfloat16", "@bf16")])
def test_another_device_or_dtype_reruns_what_computes(
    key: str, value: str, refused: str, planner: Planner, run: Run, all_jobs: set[Job]
) -> None:
    library = {kind: [name for name in names if refused not in name] for kind, names in run.config["library"].items()}
    assert library != run.config["library"]
    rerun = {job for job in expected(all_jobs, reruns.first_of_key(key)) if refused not in job[1]}
    assert planner(run.config | {key: value, "library": library}) == rerun


def test_streaming_instead_of_the_cache_reaches_what_reads_it(planner: Planner, run: Run, all_jobs: set[Job]) -> None:
    plan = planner(run.config | {"activations": {"mode": "stream"}})
    first = reruns.first_of_key("activations.mode")
    assert plan == expected(all_jobs, first)


@pytest.mark.parametrize(
    ("deleted", "first"),
    [
        ("library/ffn/linear/00-02.safetensors", "distill_blocks"),
        ("scores/attention/gqa-1/00-02.parquet", "score_blocks trained"),
        ("costs/torch/ffn/linear.parquet", "measure_costs torch"),
        ("targets/small/0/evaluation.parquet", "evaluate_model"),
        ("report.html", "build_report"),
    ],
)
def test_a_deleted_file_reruns_its_own_job_and_what_reads_it(
    deleted: str, first: str, planner: Planner, run: Run, all_jobs: set[Job]
) -> None:
    path = planner.folder / "results" / "tiny" / deleted
    path.rename(kept := path.with_name("kept"))
    try:
        plan = planner()
    finally:
        kept.rename(path)
    assert ran_rules(plan) == onward(all_jobs, first)
    assert len([job for job in plan if node(job) == first]) == 1, "no other shard, split or child"
    assert plan <= all_jobs


def test_activations_may_be_deleted_to_make_space(planner: Planner) -> None:
    """Outputs of deleted activations stay valid; only a job that reads activations makes them again."""
    path = planner.folder / "results" / "tiny" / "activations" / "finetune.npy"
    path.rename(kept := path.with_name("kept"))
    try:
        assert planner() == set()
    finally:
        kept.rename(path)


def test_a_fresh_checkout_reruns_nothing(planner: Planner, run: Run, tmp_path: Path) -> None:
    shutil.copytree(planner.repository, tmp_path / "fresh", copy_function=shutil.copyfile)  # new times, as in git
    assert Planner(run, planner.folder, tmp_path / "fresh")() == set()


def test_results_moved_or_restored_from_a_backup_rerun_nothing(planner: Planner, run: Run, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "backup"), "tar", planner.folder)
    shutil.unpack_archive(tmp_path / "backup.tar", tmp_path / "restored", filter="fully_trusted")
    assert Planner(run, tmp_path / "restored", planner.repository)() == set()
    shutil.rmtree(tmp_path / "restored" / ".snakemake" / "metadata", ignore_errors=True)
    assert Planner(run, tmp_path / "restored", planner.repository)() == set(), "and without Snakemake's own records"


def test_a_copy_with_new_times_reruns_nothing(planner: Planner, run: Run, tmp_path: Path) -> None:
    """Copy as `cp -r` does: modification times in the order of names, not of the data flow."""
    shutil.copytree(planner.folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert Planner(run, tmp_path / "copy", planner.repository)() == set()


@pytest.mark.parametrize(("file", "rule"), [("mip.json", "solve_mip"), ("layers-dropped.json", "drop_layers")])
def test_a_deleted_file_of_solutions_is_made_again(planner: Planner, file: str, rule: str) -> None:
    path = planner.folder / "results" / "tiny" / "targets" / "small" / "solutions" / file
    path.rename(moved := path.with_name("moved"))
    try:
        assert (rule, "target=small") in planner()
    finally:
        moved.rename(path)


SPLITS_OF_SOURCES = ("score", "heldout")  # one without local text, one with it


@pytest.fixture(scope="module")
def sources(
    run: Run, planner: Planner, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Callable[[], subprocess.CompletedProcess[str]]]:
    """Return a local parent and text, and a function that plans and makes the outputs that depend on them."""
    folder = tmp_path_factory.mktemp("sources")
    config = copy.deepcopy(run.config)
    parent = Path(shutil.copytree(config["parent"]["source"]["path"], folder / "parent"))
    local = config["corpus"]["heldout"]["sources"][1]
    text = Path(shutil.copy(local["paths"][0], folder / "text.jsonl"))
    config["parent"]["source"]["path"], local["paths"] = "parent", ["*.jsonl"]  # relative to the working directory
    targets = [f"results/tiny/corpus/{split}.parquet" for split in SPLITS_OF_SOURCES]
    done = snakemake(folder, config, "--cores", "2", *targets)
    assert done.returncode == 0, done.stderr
    return parent, text, lambda: snakemake(folder, config, "-n", *targets)


def planned(plan: Callable[[], subprocess.CompletedProcess[str]]) -> set[str]:
    done = plan()
    assert done.returncode == 0, done.stdout + done.stderr
    return {node(job) for job in jobs_of(done.stdout + done.stderr)}


def test_sources_with_new_times_rerun_nothing(sources: tuple) -> None:
    parent, text, plan = sources
    for path in (*parent.iterdir(), text):
        os.utime(path)
    (parent / "notes.md").write_text("Nobody reads this.")
    assert planned(plan) == set()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_parent_that_changed_in_place_is_fetched_again(name: str, sources: tuple) -> None:
    parent, _, plan = sources
    before = (parent / name).read_bytes()
    times = (parent / name).stat()
    weights = before[:-1] + bytes([before[-1] ^ 1])  # file of the same size
    (parent / name).write_bytes(weights if name == "model.safetensors" else before + b"\n")
    os.utime(parent / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    try:
        assert planned(plan) == {"fetch_parent", *(f"build_corpus {split}" for split in SPLITS_OF_SOURCES)}
    finally:
        (parent / name).write_bytes(before)
    assert planned(plan) == set()


def test_a_changed_or_added_text_rebuilds_its_split_alone(sources: tuple) -> None:
    _, text, plan = sources
    before = text.read_bytes()
    text.write_bytes(before.replace(b"Document 7 ", b"Document 8 "))
    assert planned(plan) == {"build_corpus heldout"}
    text.write_bytes(before)
    assert planned(plan) == set()
    shutil.copy(text, text.with_name("more.jsonl"))
    assert planned(plan) == {"build_corpus heldout"}
    text.with_name("more.jsonl").unlink()


def test_sources_may_go_once_what_is_made_from_them_is_there(sources: tuple) -> None:
    parent, text, plan = sources
    parent.rename(parent.with_name("gone"))
    text.rename(text.with_name("gone.txt"))
    made = parent.with_name("results") / "tiny" / "corpus" / "heldout.parquet"
    try:
        assert planned(plan) == set()
        made.rename(made.with_name("kept"))
        done = plan()
        assert done.returncode == 1
        assert done.stderr.splitlines() == ["error: config.corpus.heldout: no file matches '*.jsonl'"]
    finally:
        made.with_name("kept").rename(made)
        parent.with_name("gone").rename(parent)
        text.with_name("gone.txt").rename(text)


def test_a_search_with_the_same_answer_trains_nothing_again(run: Run, copy_of_run: Callable[[], Path]) -> None:
    """A setting of the solver changes, but not its solution."""
    folder, config = copy_of_run(), run.config | {"search": {"time_limit": 59}}
    done = snakemake(folder, config, "--cores", "2")
    assert done.returncode == 0, done.stderr
    assert ran(done.stdout + done.stderr) == {"solve_mip", "pin_architecture", "build_report"}
    again = snakemake(folder, config, "--cores", "2")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_deleted_piece_is_made_again_and_its_child_is_not(run: Run, copy_of_run: Callable[[], Path]) -> None:
    """Distillation is deterministic: the piece is the same, so nothing is assembled or trained."""
    folder = copy_of_run()
    (folder / "results" / "tiny" / "library" / "ffn" / "linear" / "00-02.safetensors").unlink()
    done = snakemake(folder, run.config, "--cores", "2")
    assert done.returncode == 0, done.stderr
    rules = ran(done.stdout + done.stderr)
    assert {"distill_blocks", "score_blocks", "pin_architecture"} <= rules
    assert not rules & {"assemble_child", "finetune_child", "evaluate_model", "measure_costs", "build_corpus"}
