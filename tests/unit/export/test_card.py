"""The model card: its front matter, the picture, the tables, and a config that reproduces the child."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tiny_children import CONFIGS, MIXED

from tangram.config import load, parse
from tangram.export.card import Facts, card, picture, read_record
from tangram.models.families import Shape

CONFIG = Path(__file__).parents[3] / "config" / "smollm2-structure.yaml"
SHAPE = Shape.of(CONFIGS["llama"])


def row(model: str, task: str, metric: str, value: float, error: float | None) -> dict:
    return {"model": model, "task": task, "metric": metric, "value": value, "standard_error": error, "n": 9}


@pytest.fixture
def facts() -> Facts:
    config = load(CONFIG)
    raw = config.model_dump(mode="json", exclude_defaults=True, exclude={"studies", "evaluation"})
    rows = [
        row("parent", "heldout", "perplexity", 40.0, 2.0),
        row("finetuned", "heldout", "perplexity", 50.0, 1.0),
        row("finetuned", "heldout", "kl", 0.25, 0.01),
        row("child", "chat", "speedup", 1.5, 0.05),
    ]
    parent = {"source": {"repo": "someone/small"}, "license": "apache-2.0", "weights": "as published"}
    target = config.primary_target
    frame = pd.DataFrame(rows)
    return Facts("mine", target, "0", ("gguf", "hf"), parent, MIXED, SHAPE, frame, "torch", frame[:0], raw)


def test_the_front_matter_is_the_hubs(facts: Facts) -> None:
    front = yaml.safe_load(card(facts).split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert "The parent's license, `apache-2.0`, holds" in card(facts)
    named = {"license": "other", "license_name": "small-1", "license_link": "LICENSE.txt"}
    other = card(replace(facts, parent=named))
    assert named.items() <= yaml.safe_load(other.split("---\n")[1]).items()
    assert "`small-1` (LICENSE.txt)" in other
    assert front["base_model"] == "someone/small"
    assert {"tangram", "gguf", "hf"} <= set(front["tags"])
    without = card(replace(facts, parent={"source": {"path": "/some/folder"}}))
    assert {"license", "base_model"}.isdisjoint(yaml.safe_load(without.split("---\n")[1]))
    assert "`folder`" in without
    assert "license is not recorded" in without
    assert "/some" not in without


def test_the_picture_shows_what_remains_of_every_layer() -> None:
    layers, attention, ffn = picture(MIXED, SHAPE).splitlines()
    assert layers == "layer     0"
    assert attention == "attention  ▇▃██"  # none, 5/6 (gqa-1), 1/3 (linear), all, all
    assert ffn == "ffn       █▄▂ █"


def test_values_have_their_intervals(facts: Facts) -> None:
    text = card(facts)
    assert "| parent | 40 (36.08 to 43.92) | - |" in text
    assert "| child | 50 (48.04 to 51.96) | 0.25 (0.2304 to 0.2696) |" in text
    assert "| child, not finetuned | 1.5 (1.402 to 1.598) |" in text
    assert "Quality" not in card(replace(facts, evaluation=facts.evaluation[:0]))


def test_a_file_in_llama_cpp_stands_beside_the_parents(facts: Facts) -> None:
    assert "llama.cpp, scenario" not in card(facts)
    rows = [
        *(row(name, "file", "bytes", 1.5e8, None) for name in ("parent@f16", "finetuned")),
        row("finetuned", "heldout", "kl", 0.25, 0.01),
        row("parent@f16", "chat", "throughput", 50.0, 1.0),
        row("finetuned", "chat", "throughput", 60.0, 1.0),
        row("finetuned", "chat", "speedup", 1.2, 0.05),
    ]
    lines = (
        card(replace(facts, engine="llama.cpp", files=pd.DataFrame(rows)))
        .split("## Files in llama.cpp, scenario `chat`")[1]
        .split("\n")
    )
    assert lines[2].endswith("| times the F16 parent's throughput |")
    assert lines[4] == "| parent, F16 | 150 | - | 50 (48.04 to 51.96) | - |"
    assert lines[5] == "| child | 150 | 0.25 (0.2304 to 0.2696) | 60 (58.04 to 61.96) | 1.2 (1.102 to 1.298) |"


def test_speed_in_vllm_stands_beside_the_parents(facts: Facts) -> None:
    rows = [
        row("parent", "chat", "throughput", 50.0, 1.0),
        row("finetuned", "chat", "throughput", 60.0, 1.0),
        row("finetuned", "chat", "speedup", 1.2, 0.05),
    ]
    text = card(replace(facts, engine="vllm", formats=("decilm",), files=pd.DataFrame(rows)))
    lines = text.split("## Speed in vllm, scenario `chat`")[1].split("\n")
    assert lines[2] == "| model | tokens/s | times the parent's throughput |"
    assert lines[4] == "| parent | 50 (48.04 to 51.96) | - |"
    assert lines[5] == "| child | 60 (58.04 to 61.96) | 1.2 (1.102 to 1.298) |"


def test_loading_is_told_for_the_formats_of_the_folder(facts: Facts) -> None:
    text = card(facts)
    assert "llama-server --model model.gguf" in text
    assert 'from_pretrained("hf")' in text
    assert "vllm" not in text
    assert "vllm serve decilm" in card(replace(facts, formats=("decilm",)))


def test_the_config_in_the_card_is_the_runs(facts: Facts) -> None:
    text = card(facts)
    shown = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[-1])
    expected, parsed = load(CONFIG), parse(shown)
    assert parsed == expected.model_copy(update={"evaluation": parsed.evaluation, "studies": parsed.studies})
    assert (
        f"snakemake --cores all --configfile config.yaml results/mine/targets/{facts.target}/0/export/model.gguf"
        in text
    )


def test_a_folder_without_a_record_has_no_facts(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / "provenance.json").write_text(json.dumps({"license": "mit"}))
    assert read_record(tmp_path) == {"license": "mit"}
