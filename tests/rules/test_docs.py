"""The documentation: targets of links, paths, modules, keys of the config and commands exist."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from tangram.__main__ import app

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "workflow"
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md", "results/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # it also names removed files
ELSEWHERE = ("config/mine.yaml", "results", "/tmp")  # files of readers and of runs
OF_A_RUN = ("config.json", "provenance.json", "architecture.json", "child/", "selection/", "parent/")
PROGRAMS = {"cd", "eval", "export", "git", "pip", "pre-commit", "pytest", "vllm", "."}


def each(pages: list[Path]) -> pytest.MarkDecorator:
    """Return a parametrization of a test over pages."""
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """Return a page without fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def quoted(page: Path) -> list[str]:
    """Return the code spans outside fenced code."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(name: str, page: Path) -> bool:
    """Return whether a path or pattern exists in the repository, a package or the page's folder."""
    bases = (ROOT, PACKAGES, PACKAGES / "tangram", PACKAGES / "tangram_studies", page.parent)
    name = name.rstrip("/")
    return any(next(base.glob(name), None) for base in bases)


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@each(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@each(PRESENT)
def test_paths_in_backticks_exist(page: Path) -> None:
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    path_like = re.compile(rf"(?:{folders})/[\w.*/-]*|[\w*/-]+/|[\w/-]+\.(?:py|smk|md|yaml|toml|json|lock|rst|j2|png)")
    for name in quoted(page):
        if path_like.fullmatch(name) and not name.startswith(ELSEWHERE) and name not in OF_A_RUN:
            assert is_there(name, page), name


@each(PAGES)
def test_modules_in_backticks_exist(page: Path) -> None:
    for name in quoted(page):
        if re.fullmatch(r"tangram(_studies)?(\.\w+)+", name):
            module = name.replace(".", "/")
            parent, _, attribute = module.rpartition("/")
            candidates = [PACKAGES / f"{module}.py", PACKAGES / module / "__init__.py"]
            defined = {
                getattr(node, "name", None)
                for path in (PACKAGES / f"{parent}.py", PACKAGES / parent / "__init__.py")
                if path.is_file()
                for node in ast.parse(path.read_text()).body
            }
            assert any(path.is_file() for path in candidates) or attribute in defined, name


@each([page for page in PRESENT if page.name != "reruns.md"])  # its modules look like keys
def test_keys_of_the_config_exist(page: Path) -> None:
    schema = json.loads((ROOT / "config" / "config.schema.json").read_text())
    sections = set(schema["properties"]) - {"run"}
    known = {key for model in [schema, *schema["$defs"].values()] for key in model["properties"]}
    for name in quoted(page):
        path = re.sub(r"\.<\w+>|\[\]", "", name.partition(":")[0])
        first, *rest = path.split(".")
        if first in sections and rest and re.fullmatch(r"[a-z_.]+", path) and rest[-1] not in {"py", "parquet"}:
            assert known.issuperset(rest), name


@pytest.fixture(scope="module")
def rules() -> set[str]:
    """Return the names of all rules from Snakemake's list."""
    command = [str(Path(sys.executable).with_name("snakemake")), "--list-rules"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"^(\w+)", done.stdout, re.MULTILINE))


def commands(page: Path) -> Iterator[str]:
    """Yield the command lines of a page, in fenced code and code spans."""
    for block in blocks(page, "(?:ba)?sh"):
        yield from (line for line in block.replace("\\\n", "").splitlines() if line.split("#")[0].strip())
    yield from (text for text in quoted(page) if re.match(r"(make|snakemake|tangram|python) [^…]+$", text))


@each(PAGES)
def test_commands_name_what_exists(page: Path, rules: set[str]) -> None:
    recipes = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    click_commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in commands(page):
        program, *words = shlex.split(line, comments=True)
        names = [word for word in words if not word.startswith("-") and "=" not in word]
        for option in ("--configfile", "--config", "--directory"):
            if option in words:
                value = words[words.index(option) + 1]
                assert "=" in value or value.startswith(ELSEWHERE) or (ROOT / value).exists(), line
                names = [name for name in names if name != value]
        if program == "make":
            assert set(names) <= recipes, line
        elif program == "snakemake":
            assert set(names) - {"slurm", "tangram"} <= rules, line
            assert "--profile" not in words or (ROOT / words[words.index("--profile") + 1]).is_dir(), line
        elif program == "tangram":
            assert names[0] in click_commands, line
            options = {name for option in click_commands[names[0]].params for name in option.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
        elif program == "python" and words[0] == "-m":
            module = PACKAGES / words[1].replace(".", "/")
            assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), line
        elif program == "python":
            assert (ROOT / words[0]).is_file(), line
        else:
            assert program in PROGRAMS, line


def test_the_table_of_stages_names_every_command() -> None:
    rows = re.findall(r"^\| \w+ \| (`.*?`) \|", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    modules = {path.stem for path in (PACKAGES / "tangram" / "commands").glob("[!_]*.py")}
    elsewhere = {name for name in modules if re.match(r"study_|fetch_\w+_|print_", name)}  # studies, or run by no rule
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == modules - elsewhere
