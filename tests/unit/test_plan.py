"""The planner: its counts against the parent's own parameters and against the rules' plan."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tangram.config import load, parse
from tangram.errors import TangramError
from tangram.plan import RATES, Rates, merged, sizes_of, stages, table, with_measured

ROOT = Path(__file__).parents[2]
H100 = load(ROOT / "config" / "llama-3.1-8b-h100.yaml")


@pytest.mark.parametrize(("config", "tied"), [("llama-3.1-8b-h100", False), ("llama-3.1-70b-8xh100", False)])
def test_sizes_are_those_of_the_model_itself(config, tied):
    import torch

    settings = load(ROOT / "config" / f"{config}.yaml")
    sizes, known = sizes_of(settings), settings.parent
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                "llama",
                num_hidden_layers=2,
                num_attention_heads=known.num_attention_heads,
                num_key_value_heads=known.num_kv_heads,
                tie_word_embeddings=tied,
                **known.sizes.model_dump(include={"hidden_size", "intermediate_size", "vocab_size"}),
            )
        )
    layer = model.model.layers[0]
    assert sizes.attention == sum(p.numel() for p in layer.self_attn.parameters())
    assert sizes.ffn == sum(p.numel() for p in layer.mlp.parameters())
    norms = sum(p.numel() for p in layer.parameters()) - sizes.layer
    expected = model.num_parameters() + (sizes.layers - 2) * (sizes.layer + norms)
    assert sizes.total == pytest.approx(expected, rel=1e-3)


def test_twice_the_tokens_take_twice_the_work():
    free = Rates(flops=1e12, decode_bytes=1e12, disk_bytes=1e30, startup=0)
    raw = H100.model_dump(mode="json")
    twice = parse(raw | {"corpus": raw["corpus"] | {"finetune": raw["corpus"]["finetune"] | {"tokens": 2 * 16777216}}})
    one, two = ({stage.rule: stage.seconds for stage in stages(config, free)} for config in (H100, twice))
    assert two["finetune_child"] == pytest.approx(2 * one["finetune_child"])
    assert {rule for rule in one if two[rule] != one[rule]} <= {"finetune_child", "build_corpus"}


def test_more_gpus_share_memory_and_time():
    raw = H100.model_dump(mode="json")
    parallel = {"parallel": {"nodes": 2, "processes_per_node": 8, "strategy": "fsdp"}}
    wide = parse(raw | {"finetune": raw["finetune"] | parallel})
    one, many = (
        {stage.rule: stage for stage in merged(stages(config, RATES["cuda"]))}["finetune_child"]
        for config in (H100, wide)
    )
    assert (one.devices, many.devices) == (2, 16)
    assert many.seconds < one.seconds
    assert many.device_bytes < one.device_bytes


@pytest.mark.parametrize("name", ["llama-3.1-8b-h100", "llama-3.1-70b-8xh100"])
def test_jobs_are_those_that_snakemake_plans(name, tmp_path):
    command = [Path(sys.executable).with_name("snakemake"), "-n", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", tmp_path, "--configfile", ROOT / "config" / f"{name}.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counted = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    found = {stage.rule: stage.jobs for stage in merged(stages(load(ROOT / "config" / f"{name}.yaml"), RATES["cuda"]))}
    found["measure_costs"] += 1  # embedding, norm and head: seconds
    assert found == {rule: int(counted[rule]) for rule in found}


def test_the_default_configs_jobs_fit_their_gpus():
    memory = {stage.rule: stage.device_bytes for stage in merged(stages(H100, RATES["cuda"]))}
    assert {rule for rule, needed in memory.items() if needed > 80e9} == set()


def test_measured_seconds_stand_beside_planned_ones(tmp_path):
    for i, seconds in enumerate((10.0, 30.0)):
        path = tmp_path / "benchmarks" / "distill_blocks" / f"{i}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
    found = with_measured(merged(stages(H100, RATES["cuda"])), tmp_path)
    assert {stage.rule: stage.measured for stage in found}["distill_blocks"] == 20.0
    assert "planned / measured" in table(found, "cuda")


def test_unknown_sizes_are_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    raw = H100.model_dump(mode="json")
    with pytest.raises(TangramError, match=r"sizes are not known.*config\.parent\.sizes"):
        sizes_of(parse(raw | {"parent": raw["parent"] | {"sizes": None}}))
