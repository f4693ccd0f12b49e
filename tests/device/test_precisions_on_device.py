"""Matrices in int8 and fp8 on a device: the padded products, pieces, costs and children equal those of the CPU."""

import json

import pandas as pd
import pytest
import torch
from pretend_device import pretend
from safetensors.torch import load_file
from tiny_children import CONFIGS, FACTORS, IN_BF16, IN_FP8, QUANTIZED, VOCABULARY, child_of
from tiny_models import random_model

from tangram import timing
from tangram.child.assemble import save_child
from tangram.cli import Pieces, Runtime
from tangram.commands.measure_costs import measure_costs
from tangram.commands.quantize_blocks import quantize_blocks
from tangram.commands.score_blocks import score_blocks
from tangram.costs import torch_engine
from tangram.errors import TangramError
from tangram.files import write_tensors
from tangram.library.pieces import tensor_name
from tangram.library.requantize import round_again, to_float
from tangram.models.loading import load_model
from tangram.models.packed import pack
from tangram.models.quantized import Fp8Linear, Int8Linear
from tangram.tables import CORPUS, write_table

TOKENS = torch.arange(2, 2 + 2 * 9).view(2, 9) * 7 % VOCABULARY
CHILDREN = {"int8": QUANTIZED, "bf16": IN_BF16, "fp8": IN_FP8, "factors": FACTORS}
SETTINGS = json.dumps({"batch_size": 2, "holdout_fraction": 0.25, "ridge": 1e-3, "normalize": "tensor"})


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Shorten timing; restore threads, seeds and modes after each test."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch_engine, "COPIES", (1, 1))
    monkeypatch.setattr(timing, "MINIMUM_SECONDS", 1e-9)
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("layer", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("shape", [(1, 20, 12), (16, 16, 16), (17, 8, 8), (40, 33, 50)])
def test_products_of_any_size_run_on_the_device(layer, shape):
    tokens, width, rows = shape
    x, weight = (layer.rounded(100 * seeded(n, width, seed=n)) for n in (tokens, rows))
    expected = layer.product(x, weight)
    with pretend() as products:
        found = layer.product(x.to("cuda"), weight.to("cuda")).cpu()
    assert products == {"cuda": 1}
    torch.testing.assert_close(found, expected, rtol=0 if layer is Int8Linear else 1e-6, atol=0)


def test_the_device_refuses_sizes_that_a_gpu_refuses():
    with pretend():
        x, weight = (torch.ones(n, 20, dtype=torch.int8).to("cuda") for n in (1, 12))
        with pytest.raises(RuntimeError, match=r"no kernel for \(1, 20\) x \(20, 12\)"):
            torch._int_mm(x, weight.t())


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_with_precisions_computes_on_the_device(name, packed, tmp_path):
    child = child_of(random_model(CONFIGS["qwen2"]), CHILDREN[name])
    save_child(child, child.config, tmp_path, tmp_path / "child", {})

    def logits(device):
        model = load_model(tmp_path / "child", device=device)
        return (pack(model) if packed else model)(input_ids=TOKENS.to(device)).logits.cpu()

    expected = logits("cpu")
    with pretend() as products:
        found = logits("cuda")
    assert products["cuda"]
    assert not products["cpu"]
    assert (found - expected).norm() < 0.02 * expected.norm()  # a last bit of an input may round it otherwise


@torch.no_grad()
@pytest.mark.parametrize("name", ["int8", "fp8", "factors"])
def test_trained_matrices_are_rounded_again(name, tmp_path):
    child = child_of(random_model(CONFIGS["qwen2"]), CHILDREN[name])
    save_child(child, child.config, tmp_path, tmp_path / "child", {})

    def rounded(device):
        model = load_model(tmp_path / "child", device=device)
        replaced = to_float(model)
        for each in replaced:
            weight = model.get_submodule(each).weight
            weight += 0.1 * weight.std() * seeded(*weight.shape).to(device)
        round_again(model, replaced, TOKENS)
        return {each: tensor.cpu() for each, tensor in model.state_dict().items()}

    expected = rounded("cpu")
    with pretend() as products:
        found = rounded("cuda")
    assert products["cuda"]
    assert not products["cpu"]
    assert found.keys() == expected.keys()
    for each, tensor in expected.items():
        assert found[each].dtype == tensor.dtype
        if tensor.dtype.itemsize == 1:
            assert (found[each].float() == tensor.float()).float().mean() > 0.98, each
        else:
            torch.testing.assert_close(found[each], tensor, rtol=1e-4, atol=1e-6)


@pytest.fixture
def job(tiny_parent, tmp_path):
    """A function that quantizes and scores pieces on a device, in a folder with its name."""
    parent = tiny_parent("qwen3")
    tokens = torch.randint(3, 300, (8, 16), generator=torch.Generator().manual_seed(1))
    facts = {"source": "made", "documents": ["d"], "document_starts": [0]}
    rows = [{"sequence_id": i, "input_ids": row, **facts} for i, row in enumerate(tokens.tolist())]
    write_table(rows, CORPUS, tmp_path / "corpus.parquet")
    weights = {}
    for operator in ("gate", "up", "down"):
        dense = load_model(parent).get_submodule(f"model.layers.1.mlp.{operator}_proj").weight
        weights |= {f"{operator}_proj.down": dense[:5].clone(), f"{operator}_proj.up": seeded(len(dense), 5) / 4}
    write_tensors(tmp_path / "source", {tensor_name(1, "ffn", name): t for name, t in weights.items()}, {})

    def run(kind, variant, device):
        pieces, folder = Pieces(kind, variant, range(0, 1) if kind == "head" else range(1, 2)), tmp_path / device
        folder.mkdir()
        given, runtime = (str(parent), str(tmp_path / "corpus.parquet")), Runtime(device=device)
        source = str(tmp_path / "source") if variant.startswith("lowrank") else None
        quantize_blocks(
            SETTINGS, pieces, *given, str(folder / "pieces"), str(folder / "table"), source=source, runtime=runtime
        )
        score_blocks(
            '{"batch_size": 3}', pieces, *given, str(folder / "pieces"), str(folder / "scores"), runtime=runtime
        )
        return load_file(folder / "pieces"), pd.read_parquet(folder / "table"), pd.read_parquet(folder / "scores")

    return run


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize(
    ("kind", "variant"), [("attention", "parent"), ("ffn", "parent"), ("ffn", "lowrank-5"), ("head", "parent")]
)
def test_a_piece_is_quantized_and_scored(kind, variant, precision, job):
    pieces, table, scores = job(kind, f"{variant}@{precision}", "cpu")
    with pretend() as products:
        others, other_table, other_scores = job(kind, f"{variant}@{precision}", "cuda")
    assert products["cuda"]
    assert not products["cpu"]
    assert pieces.keys() == others.keys()
    for name, tensor in pieces.items():
        assert others[name].dtype == tensor.dtype
        if tensor.dtype == torch.float32:  # factors and biases
            torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6)
        else:
            assert (others[name].float() == tensor.float()).float().mean() > 0.98, name
    assert other_table.kept.tolist() == table.kept.tolist()
    torch.testing.assert_close(other_table.bld_loss_after[0], table.bld_loss_after[0], rtol=0.02, atol=1e-7)
    pd.testing.assert_series_equal(other_scores.value, scores.value, rtol=0.05, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "variant"), [("ffn", "parent@fp8"), ("attention", "lowrank-5@int8"), ("head", "parent@fp8")]
)
def test_costs_of_precisions_are_measured(kind, variant, tiny_parent, tmp_path):
    settings = {"costs": {"repeats": 3, "stack_megabytes": 1}}
    settings["scenarios"] = {"chat": {"prefill": 8, "generate": 2, "batch_sizes": [2]}}
    parent = str(tiny_parent("llama"))
    with pretend() as products:
        path = str(tmp_path / "costs.parquet")
        measure_costs(json.dumps(settings), kind, variant, parent, path, runtime=Runtime(device="cuda"))
    assert products["cuda"]
    assert not products["cpu"]
    assert set(pd.read_parquet(tmp_path / "costs.parquet").variant) == {variant}


def test_a_gpu_without_float8_is_refused_in_one_line(job, tiny_parent, tmp_path, monkeypatch):
    message = (
        r"^fp8 needs a GPU of compute capability 8\.9 or later, and this machine's has 8\.0; leave fp8 out, or .*$"
    )
    child = child_of(random_model(CONFIGS["llama"]), IN_FP8)
    save_child(child, child.config, tmp_path, tmp_path / "child", {})
    with pretend():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
        cuda, nothing = Runtime(device="cuda"), str(tmp_path / "nothing")
        for refused in (
            lambda: job("ffn", "parent@fp8", "cuda"),
            lambda: load_model(tmp_path / "child", device="cuda"),
            lambda: measure_costs("{}", "ffn", "parent@fp8", nothing, nothing, runtime=cuda),
            lambda: score_blocks("{}", Pieces("ffn", "parent@fp8", range(1)), *[nothing] * 4, runtime=cuda),
        ):
            with pytest.raises(TangramError, match=message):
                refused()
    load_model(tmp_path / "child")
