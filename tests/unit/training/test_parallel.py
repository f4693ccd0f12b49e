"""Two processes over gloo against one: the same loss curve and the same child, in both ways to share the work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tangram.activations import StreamedActivations, capture
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_config, load_parent, save_child
from tangram.cli import Runtime
from tangram.commands.finetune_child import finetune_child
from tangram.config import BlockDistillation, Finetune
from tangram.corpus.tokens import read_tokens
from tangram.library.distill import LayerDistillation
from tangram.models.loading import load_model
from tangram.tables import CORPUS, CURVES, VALIDATION_KL, read_table, write_table
from tangram.training.parallel import World


def make_job(parent: Path, folder: Path, dtype: str, ffn: str = "no-op", **settings: object) -> dict[str, str]:
    """A child with another FFN in its second layer, and seven sequences: the last step of an epoch is a small one."""
    model = load_model(parent, dtype)
    model.save_pretrained(folder / "parent")
    for path in parent.glob("tokenizer*"):
        shutil.copyfile(path, folder / "parent" / path.name)
    parent = folder / "parent"
    config, state = load_parent(parent)
    architecture = Architecture((LayerChoice(), LayerChoice(ffn=ffn), LayerChoice()))
    tokens = torch.randint(0, config.vocab_size, (7, 12), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 2)
    problem = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(epochs=0))
    child = assemble_state(state, architecture, lambda kind, variant, _: problem.distill(kind, variant, 0).weights)
    save_child(child, build_config(config, architecture), parent, folder / "child", {})
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": ids, "documents": [str(i)], "document_starts": [0]}
        for i, ids in enumerate(tokens.tolist())
    ]
    write_table(rows, CORPUS, folder / "corpus.parquet")
    capture(model, read_tokens(folder / "corpus.parquet"), 2, folder / "states.npy", "test")
    options = {"budget": {"epochs": 2}, "batch_size": 4, "micro_batch_size": 1, "lm_weight": 0.5, "learning_rate": 1e-3}
    return {
        "settings": Finetune(**options | settings).model_dump_json(exclude={"parallel", "checkpoint_seconds"}),
        "parent": str(parent),
        "child": str(folder / "child"),
        "corpus": str(folder / "corpus.parquet"),
        "activations": str(folder / "states.npy"),
        "runtime": f"dtype={dtype}",
    }


@pytest.fixture(scope="module")
def job(tiny_parent, tmp_path_factory) -> dict[str, str]:
    return make_job(tiny_parent("llama", tie_word_embeddings=True), tmp_path_factory.mktemp("job"), "float32")


def finetuned(job: dict[str, str], folder: Path, **options: str) -> tuple[dict[str, torch.Tensor], list]:
    """Run the real command and return the child's tensors and the loss curve."""
    outputs = {name: str(folder / name) for name in ("checkpoints", "folder", "curves")}
    command = [sys.executable, "-m", "tangram.commands.finetune_child"]
    for name, value in {**job, **outputs, **options}.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (folder / "checkpoints").exists()
    rows = read_table(folder / "curves", CURVES)
    return load_file(folder / "folder" / "model.safetensors"), rows[["step", "metric", "value"]].values.tolist()


def killed(job: dict[str, str], folder: Path, **options: str) -> Path:
    """Train to the end without being able to say so, as a killed job: its table cannot be written; return its state."""
    (folder / "curves").mkdir(parents=True)
    outputs = {name: str(folder / name) for name in ("checkpoints", "folder", "curves")}
    command = [sys.executable, "-m", "tangram.commands.finetune_child"]
    for name, value in {**job, **outputs, "checkpoint-seconds": "0", **options}.items():
        command += [f"--{name}", value]
    assert subprocess.run(command, capture_output=True, text=True, timeout=300).returncode != 0
    (folder / "curves").rmdir()
    return folder / "checkpoints"


@pytest.fixture(scope="module")
def alone(job, tmp_path_factory):
    return finetuned(job, tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("streamed", [False, True], ids=["cached", "streamed"])
def test_two_processes_follow_the_loss_curve_of_one(job, alone, tmp_path, strategy, streamed):
    job = {name: value for name, value in job.items() if not (streamed and name == "activations")}
    layout = json.dumps({"processes_per_node": 2, "strategy": strategy})
    weights, curve = finetuned(job, tmp_path, parallel=layout, runtime=f"{job['runtime']},threads=2")
    expected_weights, expected_curve = alone
    assert [row[:2] for row in curve] == [row[:2] for row in expected_curve]
    assert [row[2] for row in curve] == pytest.approx([row[2] for row in expected_curve], rel=1e-4)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_sharded_training_resumes_from_its_parts(job, alone, tmp_path):
    """Every process leaves its part of a state; a training that found one ends like one that never stopped."""
    layout = {"parallel": json.dumps({"processes_per_node": 2, "strategy": "fsdp"})}
    state = killed(job, tmp_path, **layout)
    assert sorted(path.name for path in state.iterdir()) == ["3.0-of-2.safetensors", "3.1-of-2.safetensors", "latest"]
    weights, _ = finetuned(job, tmp_path, **layout)
    for name, tensor in alone[0].items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


def test_a_child_records_its_budget_and_its_learning_curve(job, tmp_path):
    """Of a budget in minutes, too, which is that of the steps which it took."""
    minutes = {**job, "settings": changed(job, {"minutes": 0.02}), "score": job["corpus"]}
    finetuned(minutes, tmp_path / "minutes")
    rows = read_table(tmp_path / "minutes" / "curves", CURVES)
    record = json.loads((tmp_path / "minutes" / "folder" / "provenance.json").read_text())
    steps, tokens = record["finetune_steps"], record["finetune_tokens"]
    assert steps == len(rows[rows["metric"] == "loss"]) > 1
    assert tokens == 12 * (steps // 2 * 7 + steps % 2 * 4)  # four sequences, then three
    points = rows[rows["metric"] == VALIDATION_KL].sort_values("tokens")
    assert list(points["step"])[:: len(points) - 1] == [0, steps]
    assert list(points["value"])[:: len(points) - 1] == pytest.approx([record["kl_before"], record["kl_after"]])
    _, curve = finetuned({**job, "settings": changed(job, {"tokens": tokens})}, tmp_path / "tokens")
    assert curve == rows[rows["metric"] != VALIDATION_KL][["step", "metric", "value"]].values.tolist()


def changed(job: dict[str, str], budget: dict[str, float]) -> str:
    """Return a job's settings with another budget."""
    return json.dumps(json.loads(job["settings"]) | {"budget": budget})


def share_moved(job: dict[str, str], state: Path) -> float:
    """Return the share of weights that differ from the child's in a state of float32, from all of its parts."""
    begin = load_file(Path(job["child"]) / "model.safetensors")
    files = [load_file(path) for path in sorted(state.glob("*.safetensors"))]
    moved = 0
    for name, tensor in begin.items():
        found = torch.cat([file[f"parameter.{name}"] for file in files])
        assert found.dtype == torch.float32
        moved += int((found != tensor.float()).sum())
    return moved / sum(tensor.numel() for tensor in begin.values())


LONGER = {"budget": {"epochs": 10}, "learning_rate": 3e-4}  # 20 steps, most of which bfloat16 alone would round away


@pytest.fixture(scope="module")
def float32(tiny_parent, tmp_path_factory) -> tuple[float, list]:
    """The share of weights that training in float32 moves, and its curve."""
    folder = tmp_path_factory.mktemp("float32")
    job = make_job(tiny_parent("llama", tie_word_embeddings=True), folder, "float32", **LONGER)
    return share_moved(job, killed(job, folder / "run")), finetuned(job, folder / "run")[1]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["one", "ddp", "fsdp"])
def test_bfloat16_trains_like_float32(tiny_parent, float32, tmp_path, strategy):
    """Also where it resumes, as it does here; and the child on disk is bfloat16."""
    job = make_job(tiny_parent("llama", tie_word_embeddings=True), tmp_path, "bfloat16", **LONGER)
    layout = {} if strategy == "one" else {"processes_per_node": 2, "strategy": strategy}
    options = {"parallel": json.dumps(layout), "runtime": "dtype=bfloat16,threads=2"}
    share = share_moved(job, killed(job, tmp_path / "run", **options))
    weights, curve = finetuned(job, tmp_path / "run", **options)
    assert share == pytest.approx(float32[0], abs=0.01)  # bfloat16 alone: 0.35 of 1
    last, last32 = ([value for _, metric, value in rows if metric == "loss"][-1] for rows in (curve, float32[1]))
    assert last == pytest.approx(last32, rel=0.005)  # bfloat16 alone: 0.06
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


@pytest.mark.slow
def test_a_sharded_teacher_is_never_whole(job, tmp_path):
    """Its layers run one by one; each gives its gathered weights back."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch\n"
        "from torch.distributed.tensor import DTensor\n"
        "from tangram.activations import StreamedActivations\n"
        "from tangram.training.parallel import process_group\n"
        "with process_group('cpu', 'fsdp') as world:\n"
        "    teacher = world.load_teacher(sys.argv[1], 'float32', runs=True)\n"
        "    states = StreamedActivations(teacher, torch.zeros(2, 8, dtype=torch.long), 2)\n"
        "    assert states.of_sequences(torch.arange(2), [3])[0].isfinite().all()\n"
        "    assert all(isinstance(p, DTensor) for layer in teacher.model.layers for p in layer.parameters())\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(script), job["parent"]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_fixed_factors_reach_sharded_processes(tiny_parent, tmp_path):
    """An `ntk` piece has a factor that is not trained, so it is in the file but no parameter."""
    job = make_job(tiny_parent("llama"), tmp_path, "bfloat16", ffn="ntk-8")
    expected_weights, expected_curve = finetuned(job, tmp_path / "one")
    layout = json.dumps({"processes_per_node": 2, "strategy": "fsdp"})
    weights, curve = finetuned(job, tmp_path / "two", parallel=layout, runtime=f"{job['runtime']},threads=2")
    assert [row[2] for row in curve] == pytest.approx([row[2] for row in expected_curve], rel=1e-3)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=2e-2, atol=1e-3, msg=name)
        if name.endswith("proj.down"):
            assert torch.equal(weights[name], tensor)


def test_shares_make_up_the_step_and_all_work_equally_often():
    parts = torch.arange(7).split(2)
    shares = [World(rank, 3).split(parts) for rank in range(3)]
    assert {len(share) for share in shares} == {2}
    seen = [index for share in shares for part, weight in share if weight for index in part.tolist()]
    assert sorted(seen) == list(range(7))
    assert sum(weight for share in shares for _, weight in share) == pytest.approx(1)


def test_several_nodes_need_a_slurm_job(job, tmp_path, capsys):
    outputs = {name: str(tmp_path / name) for name in ("checkpoints", "folder", "curves")}
    from tangram.errors import TangramError

    given = {**job, **outputs, "runtime": Runtime.parse(job["runtime"])}
    with pytest.raises(TangramError, match="--profile slurm"):
        finetune_child(**given, parallel='{"nodes": 2}')
