"""The grammar that every rule follows, and the agreement between each rule and its command."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.models import ArgumentInfo

ROOT = Path(__file__).parents[2]
ORDER = ["input", "output", "log", "benchmark", "params", "threads", "resources", "conda", "shell"]
NEEDED = set(ORDER) - {"input", "resources"}
SOURCES = {path: path.read_text() for path in sorted((ROOT / "rules").rglob("*.smk"))}
RULES = {
    match[1]: match[2]
    for text in SOURCES.values()
    for match in re.finditer(r"^(?:rule|checkpoint) (\w+):\n((?:    .*\n|\n)+)", text, re.MULTILINE)
}
COMMANDS = sorted(path.stem for path in (ROOT / "workflow" / "tangram" / "commands").glob("[!_]*.py"))
ON_SUCCESS = {"print_summary"}  # run by the Snakefile itself, at the end


def command_of(body: str) -> str:
    """Return the command that a rule runs."""
    return re.search(r'"python -m tangram(?:_studies)?\.commands\.(\w+) ', body)[1]


def shell_of(body: str) -> str:
    """Return a rule's shell command in one piece."""
    return "".join(re.findall(r'^        "(.*)"$', body.partition("    shell:\n")[2], re.MULTILINE))


def test_the_snakefile_is_a_table_of_contents() -> None:
    text = (ROOT / "Snakefile").read_text()
    assert len(text.splitlines()) <= 60
    assert re.findall(r'^include: "(.*)"$', text, re.MULTILINE)[0] == "rules/common.smk"
    stages = {f"rules/{path.name}" for path in SOURCES if path.parent.name == "rules"}
    assert set(re.findall(r'^include: "(.*)"$', text, re.MULTILINE)) == stages
    assert 'include: f"rules/studies/{study}.smk"' in text  # all of them


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
def test_shell_is_one_quoted_call_that_logs(name: str) -> None:
    shell = shell_of(RULES[name])
    assert shell.startswith("python -m tangram.commands.")
    assert shell.endswith(" 2> >(tee {log:q} >&2)")
    assert not re.findall(r"\{[^}]*(?<!:q)\}", shell), "every value is quoted"


@pytest.mark.parametrize("name", RULES)
def test_the_code_hash_is_that_of_the_command(name: str) -> None:
    command = command_of(RULES[name])
    assert f'code=code_hash("tangram.commands.{command}"),' in RULES[name]
    assert command in COMMANDS
    assert name in (command, "evaluate_parent", "collect_scores", "collect_costs")


@pytest.mark.parametrize("name", RULES)
def test_params_are_slices_never_the_config(name: str) -> None:
    params = RULES[name].partition("    params:\n")[2].partition("    threads:")[0]
    assert not re.search(r"\bconfig\b|slice_of\(cfg\)|=cfg,", params)


def test_every_command_has_a_rule() -> None:
    assert {command_of(body) for body in RULES.values()} == set(COMMANDS) - ON_SUCCESS


@pytest.mark.parametrize("name", RULES)
def test_the_shell_gives_a_command_what_it_takes(name: str) -> None:
    command = command_of(RULES[name])
    parameters = inspect.signature(getattr(importlib.import_module(f"tangram.commands.{command}"), command)).parameters
    given = set(re.findall(r" --([a-z-]+) ", shell_of(RULES[name])))
    given |= {option for option in parameters if f"{{params.{option}:q}}" in shell_of(RULES[name])}  # if there is one
    options = {
        option.replace("_", "-"): parameter.default is inspect.Parameter.empty
        for option, parameter in parameters.items()
        if not any(isinstance(hint, ArgumentInfo) for hint in getattr(parameter.annotation, "__metadata__", ()))
    }
    assert given <= options.keys()
    assert {option for option, required in options.items() if required} <= given


def test_help_is_instant_because_commands_import_what_is_heavy_only_when_they_run() -> None:
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
    assert all(f"--{option}" in done.stdout for option in ("settings", "kind", "variant", "layers", "library", "table"))
