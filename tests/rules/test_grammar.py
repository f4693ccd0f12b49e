"""The form of every rule, and its agreement with its command."""

import copy
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.api import SnakemakeApi
from snakemake.rules import Rule
from snakemake.settings.enums import Quietness
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings
from snakemake.workflow import Workflow
from typer.models import ArgumentInfo

from tangram.blocks.architecture import Architecture, LayerChoice, save_architecture
from tangram.blocks.registry import modules_of_variants
from tangram.config import load, reruns
from tangram.provenance import code_hash, modules_of

ROOT = Path(__file__).parents[2]
ORDER = [
    *("input", "output", "log", "benchmark", "params", "threads", "resources", "conda"),
    *("wildcard_constraints", "message", "shell"),
]
NEEDED = {"output", "log", "benchmark", "params", "conda", "message", "shell"}  # one thread is Snakemake's default
SOURCES = {path: path.read_text() for path in sorted((ROOT / "rules").rglob("*.smk"))}
RULES = {
    match[2]: re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
    for text in SOURCES.values()
    for match in re.finditer(r"^( *)(?:rule|checkpoint) (\w+):\n((?:\1    .*\n|\n)+)", text, re.MULTILINE)
}
COMMANDS = sorted(path.stem for path in (ROOT / "workflow" / "tangram" / "commands").glob("[!_]*.py"))
ON_SUCCESS = {"print_summary"}  # run by the Snakefile itself, at the end

# Inputs that are not passed to a command: they order jobs, or a param names their folder.
_ORDER = {"architecture"}
NOT_GIVEN = {
    **dict.fromkeys(("finetune_child", "evaluate_model", "evaluate_tasks", "evaluate_readout"), _ORDER),
    "evaluate_perplexity": _ORDER,
    "evaluate_long_context": _ORDER,
    "write_card": {"child"},
    "measure_speed": {"architectures"},
    "pin_architecture": {"library"},
    "pin_candidates": {"library"},
    "evolve_child": {"library"},
    "iterate_child": {"library"},
    "score_screened": {"library", "costs"},
    "build_report": {
        *("parent", "corpus", "library", "scores", "costs", "calibration", "search"),
        *("children", "parent_evaluation", "primary_target", "engines", "speeds", "trials"),
    },
}
WATCHED = {"code", "environment", "template"}  # params that rerun a rule and are not passed to its command

# Rules that compute with blocks; the modules of blocks are imported by name and added to the code hash.
OF_ARCHITECTURES = {"select_child", "assemble_child", "write_card"}
OF_THE_LIBRARY = {"score_screened", "calibrate_costs", "evolve_child", "iterate_child", "build_report"}
# Rules that import the registry but do not compute with blocks: they read names of variants, finished children, or the
# parent's activations or layers.
OF_NAMES = {
    *("solve_mip", "drop_layers", "uniform_precision", "search_rival", "drop_by_influence"),
    *("pin_architecture", "pin_candidates", "finetune_child"),
    *("export_gguf", "export_decilm", "export_hf", "export_parent", "measure_speed"),
    *("measure_moments", "score_layers"),
}
_CONFIG = load(ROOT / "config" / "config.yaml")
LIBRARY = ["parent", *(name for kind in ("attention", "ffn", "head") for name in _CONFIG.library.variants(kind))]


def module_of(rule: Rule) -> str:
    """Return the module that a rule runs."""
    return re.match(r"python -m (tangram[\w.]*) ", rule.shellcmd)[1]


def command_of(rule: Rule) -> str:
    """Return the function that a rule runs, with the name of its module in the core, else with that of the rule."""
    module = module_of(rule)
    return module.rpartition(".")[2] if module.startswith("tangram.commands.") else rule.name


def pinned(workflow: Workflow) -> SimpleNamespace:
    """Write the outputs of a target's checkpoints; return the wildcards of jobs that read them."""
    wildcards = SimpleNamespace(target=next(iter(_CONFIG.targets)), solution="0")
    folder = f"results/{_CONFIG.run}/targets/{wildcards.target}"
    for path in (f"{folder}/{wildcards.solution}/architecture.json", f"{folder}/candidates.json"):
        save_architecture(Architecture((LayerChoice("linear", "width-0.5"),)), {}, path)
        workflow.globals["checkpoints"].created_output.add(path)
    return wildcards


@pytest.fixture(scope="module")
def parsed() -> dict[str, Rule]:
    """The rules as parsed by Snakemake, with both methods of scoring."""
    rules: dict[str, Rule] = {}
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        for method in ("screened", "exact"):
            changed = ConfigSettings(config={"scores": {"method": method}})
            workflow = api.workflow(ResourceSettings(cores=2), changed, snakefile=ROOT / "Snakefile")._workflow
            rules |= {rule.name: rule for rule in workflow.rules if rule.name in RULES}
    return rules


def disagreements(rule: Rule) -> set[str]:
    """Return the names that only the rule has, and the names that only its shell command passes."""
    given: dict[str, set[str]] = {"input": set(), "output": set(), "params": set(), "wildcards": set()}
    for directive, name in re.findall(r"\{(\w+)\.(\w+):q\}", rule.shellcmd):
        given[directive].add(name)
    has = {
        "input": set(rule.input.keys()),
        "output": set(rule.output.keys()),
        "params": set(rule.params.keys()),
        "wildcards": set(rule.wildcard_names),
    }
    folder = "folder" in given["params"]
    spared = {
        "input": NOT_GIVEN.get(rule.name, set()),
        "output": has["output"] if folder or "{output:q}" in rule.shellcmd else set(),
        "params": WATCHED,
        "wildcards": has["wildcards"],
    }
    missing = {f"{part}.{name}" for part, names in given.items() for name in names - has[part]}
    return missing | {f"{part}.{name}" for part, names in has.items() for name in names - given[part] - spared[part]}


def test_the_snakefile_is_a_table_of_contents() -> None:
    text = (ROOT / "Snakefile").read_text()
    assert len(text.splitlines()) <= 60
    assert re.findall(r'^include: "(.*)"$', text, re.MULTILINE)[0] == "rules/common.smk"
    stages = {f"rules/{path.name}" for path in SOURCES if path.parent.name == "rules"}
    assert set(re.findall(r'^include: "(.*)"$', text, re.MULTILINE)) == stages


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_file_opens_with_its_inputs_outputs_and_steps(path: Path) -> None:
    docstring = re.match(r'"""(.*?)"""', SOURCES[path], re.DOTALL)
    assert docstring is not None
    if path.stem != "common":
        assert all(f"\n- {part}: " in docstring[1] for part in ("Input", "Output", "Steps"))


@pytest.mark.parametrize("name", RULES)
def test_directives_stand_in_order_and_none_is_missing(name: str) -> None:
    assert re.match(r'    """.+"""\n', RULES[name]), "a rule opens with its docstring"
    directives = re.findall(r"^    (\w+):", RULES[name], re.MULTILINE)
    assert directives == [directive for directive in ORDER if directive in directives]
    assert set(directives) >= NEEDED


@pytest.mark.parametrize("name", RULES)
def test_logs_and_benchmarks_are_named_like_the_rule(name: str) -> None:
    for directive, folder in (("log", "<logs>"), ("benchmark", "<benchmarks>")):
        path = re.search(rf'^    {directive}:\n        "(.*?)"', RULES[name], re.MULTILINE)[1]
        assert path.startswith(f"{folder}/{name}/")


@pytest.mark.parametrize("name", RULES)
def test_the_message_opens_with_the_rule_and_names_its_job(name: str, parsed: dict[str, Rule]) -> None:
    rule = parsed[name]
    assert re.fullmatch(rf"{name}: [^\n]+", rule.message)
    assert rule.message.endswith(", {wildcards}") == bool(rule.wildcard_names)


@pytest.mark.parametrize("name", RULES)
def test_shell_is_one_quoted_call_that_logs(name: str, parsed: dict[str, Rule]) -> None:
    line = parsed[name].shellcmd
    assert line.startswith(("python -m tangram.commands.", "python -m tangram_studies.data."))
    assert line.endswith(" 2> >(tee {log:q} >&2)")
    assert not re.findall(r"\{[^}]*(?<!:q)\}", line), "every value is quoted"


@pytest.mark.parametrize("name", RULES)
def test_the_code_hash_is_that_of_the_command(
    name: str, parsed: dict[str, Rule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, code = command_of(parsed[name]), parsed[name].params.code
    modules: list[str] = []
    wildcards = SimpleNamespace(variant="gqa-1", engine="torch")
    if name in reruns.OF_A_VARIANT:
        code, modules = code(wildcards), modules_of_variants(["gqa-1"])
    elif name in OF_ARCHITECTURES:
        code, modules = code(pinned(parsed[name].workflow)), modules_of_variants(["linear", "width-0.5", "parent"])
    elif name in OF_THE_LIBRARY:
        modules = modules_of_variants(LIBRARY)
    if name in reruns.IN_AN_ENGINE:
        code, modules = code(wildcards) if callable(code) else code, [*modules, reruns.IN_AN_ENGINE[name]["torch"]]
    assert code == code_hash(module_of(parsed[name]), *modules)
    assert reruns.command_of(name) == command


def test_rules_that_compute_with_blocks_add_their_modules(parsed: dict[str, Rule]) -> None:
    reach = {name for name, rule in parsed.items() if "tangram.blocks.registry" in modules_of(module_of(rule))}
    assert reach == {*reruns.OF_A_VARIANT, *OF_ARCHITECTURES, *OF_THE_LIBRARY, *OF_NAMES}


# Params that Snakemake does not record, since they depend on a job's files or threads; no number depends on them.
UNRECORDED = {"unrecorded", "checkpoint_seconds", "folder", "library", "results"}


@pytest.mark.parametrize("name", RULES)
def test_params_that_numbers_depend_on_are_recorded(name: str, parsed: dict[str, Rule]) -> None:
    params = parsed[name].params.items()
    unrecorded = UNRECORDED | ({"settings"} if name == "write_card" else set())  # it shows the config and reads none
    assert {param for param, value in params if Rule._is_deriving_function(value)} <= unrecorded


@pytest.mark.parametrize("name", RULES)
def test_params_are_slices_never_the_config(name: str) -> None:
    params = re.search(r"^    params:\n((?:        .*\n)+)", RULES[name], re.MULTILINE)[1]
    assert not re.search(r"\bconfig\b|slice_of\(cfg\)|=cfg,", params)


def test_every_command_has_a_rule(parsed: dict[str, Rule]) -> None:
    modules = {module_of(rule) for rule in parsed.values()}
    assert {module for module in modules if module.startswith("tangram.")} == {
        f"tangram.commands.{name}" for name in set(COMMANDS) - ON_SUCCESS
    }


@pytest.mark.parametrize("name", RULES)
def test_the_shell_gives_a_command_what_it_takes(name: str, parsed: dict[str, Rule]) -> None:
    command, line = command_of(parsed[name]), parsed[name].shellcmd
    parameters = inspect.signature(getattr(importlib.import_module(module_of(parsed[name])), command)).parameters
    given = set(re.findall(r" --([a-z-]+)[ =]", line))
    given |= {option.replace("_", "-") for option in parameters if f" {{params.{option}:q}}" in line}  # optional
    options = {
        option.replace("_", "-"): parameter.default is inspect.Parameter.empty
        for option, parameter in parameters.items()
        if not any(isinstance(hint, ArgumentInfo) for hint in getattr(parameter.annotation, "__metadata__", ()))
    }
    assert given <= options.keys()
    assert {option for option, required in options.items() if required} <= given


@pytest.mark.parametrize("name", RULES)
def test_the_shell_gives_what_the_rule_has_and_no_more(name: str, parsed: dict[str, Rule]) -> None:
    assert disagreements(parsed[name]) == set()


def test_a_rule_that_lacks_something_or_has_too_much_is_noticed(parsed: dict[str, Rule]) -> None:
    rule = copy.copy(parsed["distill_blocks"])
    command = rule.shellcmd
    for part in ("--corpus {input.corpus:q}", "--settings {params.settings:q}", "--table {output.table:q}"):
        name = part.partition("{")[2].removesuffix(":q}")
        assert part in command
        rule.shellcmd = command.replace(f" {part}", "")
        assert disagreements(rule) == {name}, "the rule has it, and the command does not take it"
        rule.shellcmd = command.replace(name, f"{name}s")
        assert disagreements(rule) == {name, f"{name}s"}, "the command takes what the rule lacks"
    rule.shellcmd = command.replace("wildcards.shard", "wildcards.target")
    assert disagreements(rule) == {"wildcards.target"}


def test_commands_import_nothing_heavy_before_they_run() -> None:
    heavy = ("torch", "transformers", "pandas", "numpy", "pyarrow", "pyomo", "datasets", "lm_eval", "matplotlib")
    modules = ["tangram.config", "tangram.provenance", *(f"tangram.commands.{name}" for name in COMMANDS)]
    script = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(*set({heavy}) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_tells_every_option() -> None:
    command = [sys.executable, "-m", "tangram.commands.distill_blocks", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(f"--{option}" in done.stdout for option in ("settings", "pieces", "runtime", "library", "table"))
