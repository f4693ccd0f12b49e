"""The rules of the studies: one per paper, with all inputs of its study; it reruns with the study's code only."""

import re
from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.rules import Rule
from snakemake.settings.enums import Quietness
from snakemake.settings.types import OutputSettings, ResourceSettings

from tangram.provenance import code_hash
from tangram_studies.__main__ import NAMES
from tangram_studies.code import modules_of_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rules() -> dict[str, Rule]:
    """The rules as parsed by Snakemake."""
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(ResourceSettings(cores=2), snakefile=ROOT / "Snakefile")._workflow
        return {rule.name: rule for rule in workflow.rules}


def test_every_paper_has_a_rule(rules: dict[str, Rule]) -> None:
    assert {name for name in rules if name.startswith("study_")} == {f"study_{name}" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_runs_its_study_and_reruns_with_its_code(name: str, rules: dict[str, Rule]) -> None:
    rule = rules[f"study_{name}"]
    assert rule.params.study == name
    assert rule.params.code == code_hash(*modules_of_study(name))
    assert rule.shellcmd.startswith("python -m tangram_studies {params.study:q} {params.inputs:q} ")
    assert rule.shellcmd.endswith(" 2> >(tee {log:q} >&2)")
    assert not re.findall(r"\{[^}]*(?<!:q)\}", rule.shellcmd), "every value is quoted"
    assert rule.message == f"study_{name}: reproduce a paper's claims"
    assert all(f"/study_{name}/" in str(path) for path in (*rule.log, rule.benchmark))
    assert all(f"/studies/{name}/" in str(path) for path in rule.output)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_is_given_what_it_reads(name: str, rules: dict[str, Rule]) -> None:
    """A rule's inputs have the names that the study's module reads from its job."""
    folder = ROOT / "workflow" / "tangram_studies" / "papers"
    paths = sorted((folder / name).glob("*.py")) or [folder / f"{name}.py"]
    text = "".join(path.read_text() for path in paths)
    asked = set(re.findall(r'inputs(?:\[|\.get\()"(\w+)"', text))
    assert asked == {*rules[f"study_{name}"].input.keys(), *({"shards", "cache"} if name == "selection" else ())}
