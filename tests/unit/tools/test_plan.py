"""The planner: its counts against the parent's own parameters and against the rules' plan."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from warm_snakemake import warm_snakemake

from tangram.config import Activations, Assembly, load, parse
from tangram.errors import TangramError
from tangram.tools.estimate import stages
from tangram.tools.plan import merged, table, with_measured
from tangram.tools.rates import RATES, Rates
from tangram.tools.sizes import sizes_of
from tangram.tools.work import MASTER_BYTES, trained_bytes

ROOT = Path(__file__).parents[3]
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


def test_quantized_pieces_cost_the_bytes_of_their_precision():
    raw = load(ROOT / "config" / "config.yaml").model_dump(mode="json")
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    raw["parent"]["sizes"] = sizes
    raw |= {"targets": {"speed-1.7": raw["targets"]["speed-1.7"]}, "primary_target": "speed-1.7"}
    raw["library"] |= {"attention": ["no-op"], "ffn": ["no-op", "width-0.5@int8"], "head": ["parent@bf16"]}
    planned = list(stages(parse(raw), RATES["cpu"]))
    ffn, head = (stage for stage in planned if stage.rule == "quantize_blocks")
    assert ffn.disk_bytes == 30 * 3 * 576 * 1536 / 2
    assert head.disk_bytes == 2 * 576 * 49152
    rules = {stage.rule: stage for stage in merged(iter(planned))}
    assert rules["distill_blocks"].jobs == 3  # the quantized piece's source, too
    assert rules["distill_blocks"].disk_bytes == 4 * ffn.disk_bytes
    assert rules["score_blocks"].jobs == 4
    assert rules["measure_costs"].jobs == 4 + 3
    raw["library"]["layers_per_shard"] = 15
    rules = {stage.rule: stage for stage in merged(stages(parse(raw), RATES["cpu"]))}
    assert rules["quantize_blocks"].jobs == 3, "the head is one job"


TEXTS = {"own": {"type": "parent-samples"}, "docs": {"type": "python-docs"}}


def test_trials_of_texts_are_counted():
    free = Rates(flops=1e12, decode_bytes=1e12, disk_bytes=1e30, startup=0)
    raw = H100.model_dump(mode="json")
    raw["corpus"]["heldout"]["tokens"] = 4096
    assert not {"try_text", "try_texts"} & {stage.rule for stage in stages(parse(raw), free)}

    def planned(**changes: object) -> list[list]:
        trials = {"sources": TEXTS, "tokens": 10**6, "heldout_tokens": 4096, "draws": 2} | changes
        found = list(stages(parse(raw | {"text_trials": trials}), free))
        return [[stage for stage in found if stage.rule == rule] for rule in ("try_text", "try_texts")]

    (own, docs), (compared,) = planned()
    assert (own.jobs, docs.jobs, compared.jobs) == (2, 2, 1)
    assert own.seconds > docs.seconds > 0  # the parent writes its text
    sizes = sizes_of(H100)
    by_hand = 1e6 * (6 * (0.9 * sizes.layers * sizes.layer + sizes.head) + 2 * (sizes.body + sizes.head)) / 1e12
    assert docs.seconds == pytest.approx(by_hand, rel=0.05)  # and the held-out text
    (_, longer), _ = planned(tokens=2 * 10**6)
    assert longer.seconds - docs.seconds == pytest.approx(by_hand)


def test_dropped_layers_are_scored_once_for_all_targets():
    raw = H100.model_dump(mode="json")
    scored = [stage.jobs for stage in stages(H100, RATES["cuda"]) if stage.rule == "score_layers"]
    assert scored == [next(stage.jobs for stage in stages(H100, RATES["cuda"]) if stage.rule == "measure_moments")]
    answered = {"scores": {"tasks": {"names": ["q.jsonl"]}}, "search": {"objective": "accuracy"}}
    assert "score_layers" not in {stage.rule for stage in stages(parse(raw | answered), RATES["cuda"])}
    targets = {name: target | {"compare_layers_dropped": False} for name, target in raw["targets"].items()}
    assert "score_layers" not in {stage.rule for stage in stages(parse(raw | {"targets": targets}), RATES["cuda"])}


def test_answers_are_a_job_for_every_piece_by_questions():
    def planned(questions):
        scores = {"tasks": {"names": ["./mine.jsonl"], "questions": questions}}
        config = parse(H100.model_dump(mode="json") | {"scores": scores})
        return [s for s in stages(config, RATES["cpu"]) if s.rule == "score_tasks"], config

    (few, config), (many, _) = planned(100), planned(200)
    assert sum(stage.jobs for stage in few) == sum(
        s.jobs for s in stages(config, RATES["cpu"]) if s.rule == "score_blocks"
    )
    start = 2 * few[0].seconds - many[0].seconds  # the seconds without questions
    assert many[0].seconds - start == pytest.approx(2 * (few[0].seconds - start))
    assert 0 < start < few[0].seconds


def test_rounds_divide_the_training_and_score_again():
    free = Rates(flops=1e12, decode_bytes=1e12, disk_bytes=1e30, startup=0)
    raw = H100.model_dump(mode="json")
    raw["finetune"].pop("parallel")  # rounds train in one process
    name = raw["primary_target"]
    raw["targets"] = {name: raw["targets"][name] | {"compare_layers_dropped": False, "compare": []}}
    once = {stage.rule: stage for stage in stages(parse(raw), free)}
    iterated = raw["targets"][name] | {"rounds": 4, "solutions": 1, "selection": None}
    found = {stage.rule: stage for stage in stages(parse(raw | {"targets": {name: iterated}}), free)}
    assert "iterate_child" not in once
    assert once["finetune_child"].jobs == found["finetune_child"].jobs == found["iterate_child"].jobs == 1
    assert found["finetune_child"].seconds == pytest.approx(once["finetune_child"].seconds / 4)
    scored = sum(s.jobs * s.seconds for s in stages(parse(raw), free) if s.rule == "score_blocks")
    trained = found["iterate_child"].seconds - 3 / 4 * once["finetune_child"].seconds
    assert 0.5 * scored < trained / 3 < 1.5 * scored  # a job of score_blocks may compute activations, too


def test_screening_is_one_job_that_grows_slowly():
    free, seconds = Rates(flops=1e12, decode_bytes=1e12, disk_bytes=1e30, startup=0), []
    for count in (10, 20):
        raw = H100.model_dump(mode="json")
        raw["library"] |= {"ffn": [*(f"width-{0.9 - i / 25:.2f}" for i in range(count)), "no-op"]}
        exact, screened = (
            {stage.rule: stage for stage in merged(stages(parse(raw | {"scores": {"method": method}}), free))}
            for method in ("exact", "screened")
        )
        assert "score_screened" not in exact
        assert "score_blocks" not in screened
        assert screened["score_screened"].jobs == 1
        seconds.append((exact["score_blocks"].jobs * exact["score_blocks"].seconds, screened["score_screened"].seconds))
    assert seconds[0][1] < seconds[0][0]
    assert seconds[1][0] - seconds[0][0] > 10 * (seconds[1][1] - seconds[0][1]) > 0


def test_more_gpus_share_memory_and_time():
    raw = H100.model_dump(mode="json")
    parallel = {"parallel": {"nodes": 2, "processes_per_node": 8, "strategy": "fsdp"}}
    wide = parse(raw | {"finetune": raw["finetune"] | parallel})
    one, many = (
        {stage.rule: stage for stage in merged(stages(config, RATES["cuda"]))}["finetune_child"]
        for config in (H100, wide)
    )
    assert (one.devices, many.devices) == (4, 16)
    assert many.seconds < one.seconds
    assert many.device_bytes < one.device_bytes


@pytest.mark.parametrize("name", ["llama-3.1-8b-h100", "llama-3.1-70b-8xh100"])
def test_jobs_are_those_that_snakemake_plans(name, tmp_path):
    options = ["--directory", tmp_path, "--configfile", ROOT / "config" / f"{name}.yaml"]
    done = warm_snakemake("-n", "--snakefile", ROOT / "Snakefile", *options, folder=ROOT)
    assert done.returncode == 0, done.stderr
    counted = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    found = {stage.rule: stage.jobs for stage in merged(stages(load(ROOT / "config" / f"{name}.yaml"), RATES["cuda"]))}
    found["measure_costs"] += 1  # embedding and norm: seconds
    assert found == {rule: int(counted[rule]) for rule in found}


def test_a_target_in_vllm_adds_its_starts():
    config = H100.model_dump(mode="json", exclude_defaults=True)
    (name, target), *_ = config["targets"].items()
    config |= {"targets": {name: target}, "primary_target": name}
    in_torch, in_vllm = (
        {
            stage.rule: stage
            for stage in merged(stages(parse(config | {"targets": {name: target | more}}), RATES["cuda"]))
        }
        for more in ({}, {"engine": "vllm"})
    )
    assert in_vllm["measure_speed"].jobs == in_torch["measure_speed"].jobs + 1
    starts = 4 * H100.costs.repeats * 20
    assert in_vllm["measure_costs"].seconds == pytest.approx(in_torch["measure_costs"].seconds + starts)


def test_compensation_adds_two_passes_over_the_distill_split():
    cached = H100.model_copy(update={"activations": Activations()})
    compensated = cached.model_copy(update={"assembly": Assembly(compensate=True)})
    plain, fitted = ({s.rule: s for s in merged(stages(config, RATES["cuda"]))} for config in (cached, compensated))
    capture = plain["capture_activations"]  # a pass over each split
    seconds = fitted["assemble_child"].seconds - plain["assemble_child"].seconds
    assert 0 < seconds < 2 * capture.jobs * capture.seconds
    assert fitted["assemble_child"].device_bytes > plain["assemble_child"].device_bytes
    assert all(fitted[rule] == plain[rule] for rule in plain if rule != "assemble_child")


def test_the_h100_configs_jobs_fit_their_gpus():
    memory = {stage.rule: stage.device_bytes for stage in merged(stages(H100, RATES["cuda"]))}
    assert {rule for rule, needed in memory.items() if needed > 80e9} == set()
    config = load(ROOT / "config" / "llama-3.1-70b-8xh100.yaml")
    memory = {stage.rule: stage.device_bytes for stage in merged(stages(config, RATES["cuda"]))}
    of_a_node = {"fetch_parent", "assemble_child"}
    too_large = {rule for rule, needed in memory.items() if needed > 80e9} - of_a_node
    assert too_large == {"calibrate_costs", "evaluate_model", "measure_speed"}  # as the config says


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_trained_weights_is_that_of_a_real_training(tiny_parent, tmp_path, dtype):
    import torch
    from safetensors.torch import load_file

    from tangram.activations import StreamedActivations
    from tangram.config import Finetune
    from tangram.finetune import Distillation
    from tangram.models.loading import load_model
    from tangram.training.loop import Checkpointing, TrainingPlan, train
    from tangram.training.parallel import World

    child, parent = (load_model(tiny_parent("llama"), dtype) for _ in range(2))
    tokens = torch.zeros(2, 8, dtype=torch.long)
    loss = Distillation(child, parent, StreamedActivations(parent, tokens, 2), tokens, Finetune())
    held: list[int] = []
    checkpointing = Checkpointing(tmp_path, 0.0, "test")
    with World().distribute(loss, []) as shared:
        masters = {parameter.data_ptr() for parameter in child.parameters()}

        def rounded(*_: object) -> None:  # what a pass computes with, beside what the optimizer holds
            held.append(sum(p.nbytes for p in child.parameters() if p.data_ptr() not in masters))

        child.lm_head.register_forward_hook(rounded)
        train(child, shared, TrainingPlan(2, 2, 2, 2, 1e-4, 0.0), checkpointing=checkpointing)
        gradients = sum(parameter.grad.nbytes for parameter in child.parameters())
    state = load_file(next(tmp_path.glob("*.safetensors")))
    kept = sum(tensor.nbytes for name, tensor in state.items() if not name.startswith("step."))
    parameters = child.num_parameters()
    assert kept + gradients == MASTER_BYTES * parameters
    assert kept + gradients + held[0] == trained_bytes(parameters, child.dtype.itemsize)


def test_memory_kept_of_a_token_is_counted_on_a_real_layer():
    import torch

    from tangram.models.forward import layer_contexts

    settings = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 8}
    config = AutoConfig.for_model("llama", hidden_size=128, intermediate_size=448, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").bfloat16()
    hidden = torch.randn(1, 64, 128).bfloat16().requires_grad_()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    context = layer_contexts(model, hidden)[0]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](hidden, **context)
    stored = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights)
    sizes = replace(sizes_of(H100), hidden=128, ffn=3 * 128 * 448)
    assert stored == pytest.approx(2 * 64 * sizes.activations, rel=0.02)


def test_memory_of_a_childs_training_adds_up_by_hand():
    """Llama-3.1-8B: 8.03e9 parameters, 1.05e9 of them embedding and head, 0.218e9 a layer."""
    raw = H100.model_dump(mode="json")

    def memory(**parallel: object) -> float:
        changed = raw | {"finetune": raw["finetune"] | {"parallel": parallel}}
        return next(s for s in stages(parse(changed), RATES["cuda"]) if s.rule == "finetune_child").device_bytes

    alone = 18 * 8.03e9 + 2 * 8.03e9  # float32 weights, gradients, moments and rounded weights; the teacher
    alone += 2048 * (32 * (11 * 4096 + 4 * 14336) * 2 + 16 * 128256)  # 32 layers' activations; logits
    assert memory() == pytest.approx(alone, rel=0.001)
    assert memory(processes_per_node=2) == memory()  # DDP: each the whole
    four = (16 * 8.03e9 + 2 * 6.98e9) / 4 + 2 * 1.05e9  # own parts; the teacher's embedding and head
    four += 4 * 1.05e9 + max(4 * 1.05e9, 16 * 0.218e9)  # gathered: weights, gradients; what is exchanged
    four += 2048 * ((32 * 4096 + 11 * 4096 + 4 * 14336) * 2 + 16 * 128256)
    assert memory(processes_per_node=4, strategy="fsdp") == pytest.approx(four, rel=0.002)


def test_measured_seconds_stand_beside_planned_ones(tmp_path):
    for i, seconds in enumerate((10.0, 30.0)):
        path = tmp_path / "benchmarks" / "distill_blocks" / f"{i}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{seconds}\t0:00:10\n")
    found = with_measured(merged(stages(H100, RATES["cuda"])), tmp_path)
    assert {stage.rule: stage.measured for stage in found}["distill_blocks"] == 20.0
    assert "planned / measured" in table(found, "cuda")


def test_the_planner_starts_without_torch():
    command = "import sys, tangram.tools.plan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


def test_unknown_sizes_are_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    raw = H100.model_dump(mode="json")
    with pytest.raises(TangramError, match=r"sizes are not known.*config\.parent\.sizes"):
        sizes_of(parse(raw | {"parent": raw["parent"] | {"sizes": None}}))
