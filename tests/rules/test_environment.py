"""The three definitions of the environment agree: the package's dependencies, the lock file, and conda's file."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "envs" / "requirements.lock").read_text()


def normalized(name: str) -> str:
    """Return a package's normalized name."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~ ]", name)[0]).lower()


def pinned(lines: str) -> dict[str, str]:
    """Return the exact versions in requirement lines, by normalized package name."""
    found = re.findall(r"^([\w.-]+)==(\S+)$", lines, re.MULTILINE)
    return {normalized(name): version for name, version in found}


def test_the_lock_pins_every_line_without_local_versions() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert len(pinned(LOCK)) == len(lines)
    assert not [line for line in lines if "+" in line or "@" in line]


def test_every_dependency_is_locked() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["dev"], *extras["studies"]]
    assert {normalized(name) for name in wanted} <= pinned(LOCK).keys()


def test_every_dependency_has_a_lower_bound_that_the_lock_meets() -> None:
    for wanted in map(Requirement, PROJECT["dependencies"]):
        assert str(wanted.specifier).startswith(">="), wanted
        assert pinned(LOCK)[normalized(wanted.name)] in wanted.specifier


def test_every_package_that_the_code_imports_is_declared() -> None:
    modules = {
        name.partition(".")[0]
        for path in (ROOT / "workflow").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
        if isinstance(node, ast.Import | ast.ImportFrom) and name and not getattr(node, "level", 0)
    }
    others = modules - set(sys.stdlib_module_names) - {path.name for path in (ROOT / "workflow").iterdir()}
    extras = PROJECT["optional-dependencies"]
    declared = {normalized(name) for name in [*PROJECT["dependencies"], *extras["studies"], *extras["fast"]]}
    distributions = packages_distributions()
    assert not {name for name in others if not {normalized(d) for d in distributions[name]} & declared}


def test_conda_installs_the_dependencies_at_the_locked_versions() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "tangram.yaml").read_text())["dependencies"]
    lines = pinned("\n".join(next(entry["pip"] for entry in environment if isinstance(entry, dict))))
    assert lines.keys() == {normalized(name) for name in PROJECT["dependencies"]}
    assert lines == {name: pinned(LOCK)[name] for name in lines}
    python = next(entry for entry in environment if str(entry).startswith("python="))
    assert python.removeprefix("python=") == PROJECT["requires-python"].removeprefix(">=")


def test_make_runs_the_readmes_commands_with_any_config_name(tmp_path: Path) -> None:
    config = tmp_path / "it's mine (v1)" / "a & b $HOME.yaml"
    config.parent.mkdir()
    config.write_text((ROOT / "config" / "config.yaml").read_text().replace("run: smollm2-cpu", "run: mine"))
    asked = ["make", "--question", "--print-data-base", "setup"]
    (ready,) = re.findall(
        r"^READY := (.*)$", subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout, re.MULTILINE
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "--assume-old", ready, "run", "CORES=2 --dry-run --directory $$FOLDER"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path, "CONFIG": str(config), "FOLDER": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "results/mine/parent/model.safetensors" in done.stdout
