"""The config: every mistake is one line that names the key and what would be right."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tangram.config import Config, Corpus, Evaluation, Scenario, Target, load, parse, slice_of
from tangram.errors import TangramError

CONFIGS = Path(__file__).parents[2] / "config"
DEFAULT = yaml.safe_load((CONFIGS / "config.yaml").read_text())
TEXT = [{"type": "python-docs"}]


def changed(path: str, value: Any) -> dict:
    """Return the default config with one key set (or removed, with None), at a path."""
    config = copy.deepcopy(DEFAULT)
    *parents, last = path.split("/")
    section = config
    for name in parents:
        section = section[int(name)] if isinstance(section, list) else section.setdefault(name, {})
    if value is None:
        del section[last]
    elif isinstance(section, list):
        section[int(last)] = value
    else:
        section[last] = value
    return config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load(path).run == path.stem.replace("config", "smollm2-cpu")


MISTAKES = {
    "unknown key": ("sede", 1, "config.sede: unknown key; did you mean 'seed'?"),
    "unknown key below": ("library/bld/epoch", 1, "config.library.bld.epoch: unknown key; did you mean 'epochs'?"),
    "unknown key in a list": ("corpus/distil/sources/0/wieght", 2, "unknown key; did you mean 'weight'?"),
    "unknown key of a target": ("targets/speed-1.2/solution", 2, "unknown key; did you mean 'solutions'?"),
    "missing section": ("corpus/score", None, "config.corpus.score: is required but missing"),
    "wrong type": ("seed", "one", "config.seed: Input should be a valid integer"),
    "out of range": ("corpus/sequence_length", 4, "greater than or equal to 8 (got 4)"),
    "unknown variant": (
        "library/ffn",
        ["ffn_60"],
        "library.ffn[0]: 'ffn_60' is not a known variant; did you mean 'width-0.6'?",
    ),
    "unknown word": (
        "library/attention",
        ["liner"],
        "library.attention[0]: 'liner' is not a known variant; did you mean 'linear'?",
    ),
    "heads that do not divide": (
        "library/attention",
        ["gqa-2"],
        "2 KV heads do not divide the parent's 3; valid: gqa-1",
    ),
    "as many heads as the parent": ("library/attention", ["gqa-3"], "valid: gqa-1"),
    "a variant twice": ("library/ffn", ["linear", "linear"], "library.ffn[1]: 'linear' is there twice"),
    "a width above one": ("library/ffn", ["width-1.5"], "'width-1.5' is not a known variant"),
    "a misspelt operator": ("library/ffn", ["low-rank-32"], "not a known variant; did you mean 'lowrank-32'?"),
    "half a rank": ("library/attention", ["butterfly-0.5"], "not a known variant; did you mean 'butterfly-1'?"),
    "no rank": ("library/attention", ["ntk"], "not a known variant; did you mean 'ntk-64'?"),
    "a rank of zero": ("library/ffn", ["lowrank-0"], "not a known variant; did you mean 'lowrank-1'?"),
    "unknown headline": ("headline", "speed-12", "headline: 'speed-12' is not a target; did you mean 'speed-1.2'?"),
    "unknown scenario": (
        "targets/speed-1.2/constraints/0/scenario",
        "chatt",
        "targets.speed-1.2.constraints[0].scenario: 'chatt' is not a scenario; did you mean 'chat'?",
    ),
    "an upper limit of throughput": (
        "targets/speed-1.2/constraints/0",
        {"quantity": "throughput", "max": 1.2, "scenario": "chat"},
        "throughput takes 'min', and only that",
    ),
    "no scenario": (
        "targets/speed-1.2/constraints/0",
        {"quantity": "latency", "max": 1.2},
        "latency needs a 'scenario'",
    ),
    "training on BIG-bench": (
        "corpus/finetune/sources",
        DEFAULT["corpus"]["heldout"]["sources"],
        "corpus.finetune: BIG-bench's canary forbids training on it",
    ),
    "micro batches that do not divide": (
        "finetune",
        {"batch_size": 4, "micro_batch_size": 3},
        "micro_batch_size (3) must divide batch_size (4)",
    ),
    "no loss": (
        "finetune",
        {"kl_weight": 0, "cosine_weight": 0},
        "at least one of kl_weight, cosine_weight, lm_weight, span_contrast.weight must be positive",
    ),
    "tasks from nowhere": ("evaluation/task_archive", None, "tasks need a task_archive"),
    "a readout from nowhere": (
        "evaluation",
        {"readout": {"task": "intent_recognition"}},
        "config.evaluation: readout.task needs a task_archive",
    ),
    "a run that is no folder name": ("run", "../elsewhere", "config.run:"),
}


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(TangramError) as caught:
        parse(changed(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("run: [")
    with pytest.raises(TangramError, match="cannot be read as YAML"):
        load(path)
    path.write_text("- run")
    with pytest.raises(TangramError, match="expected a mapping"):
        load(path)
    with pytest.raises(TangramError, match="cannot be read"):
        load(tmp_path / "nowhere.yaml")


def test_kv_heads_of_another_parent() -> None:
    config = changed("parent/num_kv_heads", 8)
    config["parent"]["num_attention_heads"] = 16
    config["library"]["attention"] = ["gqa-4", "gqa-2", "gqa-1", "no-op"]
    assert parse(config).library.attention == ("gqa-4", "gqa-2", "gqa-1", "no-op")


def test_slices_are_canonical_and_come_back_equal() -> None:
    config = parse(DEFAULT)
    for section in (
        config.parent,
        config.corpus,
        config.library.bld,
        config.scores,
        config.finetune,
        config.evaluation,
    ):
        assert type(section).model_validate_json(slice_of(section)) == section
    assert slice_of({"b": config.scores, "a": 1}) == slice_of({"a": 1, "b": config.scores})
    assert json.loads(slice_of({"scenarios": config.scenarios}))["scenarios"]["chat"]["prefill"] == 128


def test_slices_hold_defaults_so_that_naming_one_reruns_nothing() -> None:
    config = changed("scores", {"batch_size": Config.model_fields["scores"].default.batch_size})
    assert slice_of(parse(config).scores) == slice_of(parse(DEFAULT).scores)


def test_sections_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(DEFAULT).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("section", [Corpus, Evaluation, Scenario, Target])
def test_sections_are_closed(section: type) -> None:
    assert section.model_config["extra"] == "forbid"


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_structured_operators_stand_in_for_both_kinds(kind: str) -> None:
    names = ("butterfly-64", "monarch", "lowrank-32", "ntk-128", "no-op")
    assert getattr(parse(changed(f"library/{kind}", list(names))).library, kind) == names
