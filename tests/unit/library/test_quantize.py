"""Rounding against its definitions, quantized pieces of a tiny parent, and the command that writes them."""

import copy
import json
from pathlib import Path

import pytest
import torch
from replaced import replaced
from safetensors.torch import load_file

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.cli import Pieces, Runtime
from tangram.commands.quantize_blocks import quantize_blocks
from tangram.config import BlockDistillation
from tangram.files import write_tensors
from tangram.gguf_types import rounded
from tangram.library import quantize
from tangram.library.distill import LayerDistillation
from tangram.library.pieces import tensor_name
from tangram.library.quantize import EXPONENTS, quantize_head, quantize_subblock
from tangram.library.rounding import (
    DAMPING,
    Statistics,
    round_compensated,
    round_to_nearest,
    shared_by_values,
    smoothing,
)
from tangram.models.by_layer import load_by_layer
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.loading import load_model
from tangram.models.operators import separate_factors
from tangram.models.packed import PackedLinear, pack
from tangram.models.quantized import Fp8Linear, Int8Linear
from tangram.models.replace import replace_head, replace_subblocks
from tangram.tables import CORPUS, LIBRARY, read_table, write_table


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, width: int) -> torch.Tensor:
    """Return inputs that lie near a subspace of an eighth of their dimensions."""
    return seeded(tokens, width // 8) @ seeded(width // 8, width, seed=1) + 0.1 * seeded(tokens, width, seed=2)


def reference_gptq(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Round column by column in float64; after each, solve least squares for the columns that remain."""
    scale = weight.double().abs().amax(1) / 127
    hessian = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    weight, rounded = weight.double().clone(), []
    for j in range(weight.shape[1]):
        rounded.append((weight[:, j] / scale).round().clamp(-127, 127))
        error = weight[:, j] - rounded[-1] * scale
        if j + 1 < weight.shape[1]:
            update = torch.linalg.solve(hessian[j + 1 :, j + 1 :], hessian[j + 1 :, j])
            weight[:, j + 1 :] += error[:, None] * update
    return torch.stack(rounded, dim=1)


def error_on(moment: torch.Tensor, weight: torch.Tensor, rounded: torch.Tensor, scale: torch.Tensor) -> float:
    difference = weight.double() - rounded.double() * scale.double()[:, None]
    return ((difference @ moment) * difference).sum().item()


@pytest.mark.parametrize("width", [24, 64, 160])  # within a block of columns, and over several
def test_compensated_rounding_is_that_of_a_naive_reference(width):
    weight, moment = seeded(12, width, seed=3), Statistics.of(correlated(500, width)).moment
    rounded, scale = round_compensated(weight, moment)
    expected = reference_gptq(weight, moment)
    assert (rounded.double() == expected).float().mean() > 0.995  # float32 may decide a tie otherwise
    assert (rounded.double() - expected).abs().max() <= 1
    assert error_on(moment, weight, rounded, scale) == pytest.approx(
        error_on(moment, weight, expected, scale), rel=0.01
    )


def test_compensation_lowers_the_error_on_correlated_inputs():
    weight, inputs = seeded(12, 160, seed=3), correlated(500, 160)
    moment = Statistics.of(inputs).moment
    nearest, compensated = (
        error_on(moment, weight, *rounding)
        for rounding in (round_to_nearest(weight), round_compensated(weight, moment))
    )
    assert compensated < 0.5 * nearest
    rounded, scale = round_compensated(weight, moment)
    direct = (inputs @ (weight - rounded * scale[:, None]).t()).square().sum()
    assert direct.item() == pytest.approx(compensated, rel=1e-3)


def test_compensation_lowers_the_error_of_float8_too():
    weight, moment = seeded(12, 160, seed=3), Statistics.of(correlated(500, 160)).moment
    nearest, compensated = round_to_nearest(weight, Fp8Linear), round_compensated(weight, moment, Fp8Linear)
    assert nearest[0].dtype == compensated[0].dtype == torch.float8_e4m3fn
    assert torch.equal(nearest[1], weight.abs().amax(1) / 448)
    assert error_on(moment, weight, *compensated) < 0.5 * error_on(moment, weight, *nearest)


@pytest.mark.parametrize("layer", [Int8Linear, Fp8Linear])
def test_nothing_is_compensated_on_uncorrelated_inputs(layer):
    weight, diagonal = seeded(12, 96), seeded(96, seed=1).abs().double() + 0.1
    for plain, compensated in zip(
        round_to_nearest(weight, layer), round_compensated(weight, torch.diag(diagonal), layer), strict=True
    ):
        assert torch.equal(plain, compensated)


def test_channels_without_input_and_rows_of_zeros_are_rounded():
    weight, inputs = seeded(6, 32), correlated(100, 32)
    weight[2], inputs[:, 7] = 0, 0
    for moment in (Statistics.of(inputs).moment, torch.zeros(32, 32, dtype=torch.float64)):
        rounded, scale = round_compensated(weight, moment)
        assert rounded[2].abs().max() == 0
        assert scale.isfinite().all()
        assert (weight[:, 7] - rounded[:, 7] * scale).abs().max() <= (127 / 2) * scale.max()


def test_nearest_errs_by_half_a_step_at_most():
    weight = seeded(12, 96) * torch.logspace(-6, 6, 12)[:, None]
    rounded, scale = round_to_nearest(weight)
    assert ((weight - rounded * scale[:, None]).abs() <= scale[:, None] * (0.5 + 1e-5)).all()
    assert rounded.abs().amax(1).tolist() == [127] * 12


@pytest.mark.parametrize("exponent", [0.0, 0.35, 0.5, 1.0])
def test_smoothing_changes_no_product(exponent):
    inputs, weights = seeded(50, 16), [seeded(8, 16, seed=1), 3 * seeded(4, 16, seed=2)]
    inputs[:, 3], weights[0][:, 5], weights[1][:, 5] = 0, 0, 0
    smooth = smoothing(Statistics.of(inputs), weights, exponent)
    assert smooth.isfinite().all()
    assert (smooth > 0).all()
    assert (exponent == 0) == bool((smooth == 1).all())
    for weight in weights:
        product = (inputs.double() * smooth) @ (weight.double() / smooth).t()
        torch.testing.assert_close(product, inputs.double() @ weight.double().t(), rtol=1e-9, atol=1e-9)


def test_half_smoothing_makes_inputs_and_weights_equally_large():
    inputs, weights = seeded(50, 16), [seeded(8, 16, seed=1), seeded(4, 16, seed=2)]
    smooth = smoothing(Statistics.of(inputs), weights, 0.5)
    largest = (torch.cat(weights) / smooth).abs().amax(0)
    torch.testing.assert_close((inputs * smooth).abs().amax(0), largest)


def test_compensation_is_of_the_smoothed_inputs():
    inputs, weight = correlated(500, 32) * torch.logspace(-1, 1, 32), seeded(8, 32, seed=3)
    statistics = Statistics.of(inputs)
    tensors = quantize._rounded({"a.weight": weight}, [(["a"], statistics)], Int8Linear, 0.5, compensated=True)
    smooth = smoothing(statistics, [weight], 0.5)
    rounded, scale = round_compensated(weight / smooth, Statistics.of(inputs * smooth).moment)
    assert torch.equal(tensors["a.smooth"], smooth)
    assert torch.equal(tensors["a.scale"], scale)
    assert (tensors["a.weight"] == rounded).float().mean() > 0.995


def test_statistics_of_parts_are_those_of_the_whole():
    inputs = seeded(40_000, 6)
    whole, parts = Statistics.of(inputs), Statistics.of(inputs[:7])
    parts.add(inputs[7:])
    torch.testing.assert_close(parts.moment, inputs.double().t() @ inputs.double(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(whole.moment, parts.moment, rtol=1e-5, atol=1e-2)
    assert torch.equal(whole.largest, inputs.abs().amax(0))
    assert torch.equal(parts.largest, whole.largest)


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "smollm3", "gemma2"])
def model(request, tiny_parent):
    return load_model(tiny_parent(request.param)).requires_grad_(False)


def tokens_for(model) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))


def problem_of(model, layer: int = 1) -> LayerDistillation:
    states = StreamedActivations(model, tokens_for(model), 4)
    return LayerDistillation(model, layer, states.hidden(layer), states.hidden(layer + 1), BlockDistillation())


def quantized_layer(model, kind: str, variant: str, weights):
    entries = get_block(kind, variant, Shape.of(model.config)).entries()
    return replace_subblocks(decoder_layers(model)[1], model.config, 1, entries, {kind: weights})


VARIANTS = [
    *(("attention", "parent@int8"), ("ffn", "parent@int8"), ("attention", "parent@bf16"), ("ffn", "linear@int8")),
    *(
        ("ffn", "parent@fp8"),
        ("attention", "parent@q8_0"),
        ("attention", "lowrank-4@int8"),
        ("ffn", "lowrank-8@bf16"),
        ("ffn", "ntk-8@fp8"),
    ),
]
TYPES = {"int8": torch.int8, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "q8_0": torch.float32}


def source_of(problem: LayerDistillation, kind: str, variant: str):
    name = variant.partition("@")[0]
    return None if name == "parent" else problem.distill(kind, name, seed=0).weights


@pytest.mark.parametrize(("kind", "variant"), VARIANTS)
def test_losses_are_those_of_the_float_and_the_quantized_piece(model, kind, variant):
    problem = problem_of(model)
    source = source_of(problem, kind, variant)
    piece = quantize_subblock(problem, kind, variant, source)
    assert problem.held_out_loss(quantized_layer(model, kind, variant, piece.weights), kind) == piece.loss_after
    if source is None:
        assert piece.loss_before == pytest.approx(0, abs=1e-9)
        assert 0 < piece.loss_after < 1e-2
    else:
        float_layer = replaced(model, 1, kind, variant.partition("@")[0], source)
        assert piece.loss_before == pytest.approx(problem.held_out_loss(float_layer, kind))
        assert piece.loss_after == pytest.approx(piece.loss_before, rel=0.1)
    matrices = {name: tensor for name, tensor in piece.weights.items() if tensor.ndim > 1}
    assert {t.dtype for t in matrices.values()} == {TYPES[variant.partition("@")[2]]}
    if variant.endswith("q8_0"):
        assert all(torch.equal(rounded(tensor, "q8_0", name), tensor) for name, tensor in matrices.items())
    expected = dict(subblock(decoder_layers(model)[1], kind).state_dict()) if source is None else source
    for name, tensor in expected.items():
        if tensor.ndim == 1:  # biases and norms; the second factor has the bias of both
            name = name if name in piece.weights else name.replace(".bias", ".up.bias")
            assert torch.equal(piece.weights[name], tensor), name


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_the_candidate_of_least_held_out_loss_is_kept(model, kind, monkeypatch):
    problem, tried, losses = problem_of(model), [], []
    build, measure = quantize._rounded, problem.held_out_loss
    monkeypatch.setattr(quantize, "_rounded", lambda *a, **k: tried.append(build(*a, **k)) or tried[-1])
    monkeypatch.setattr(problem, "held_out_loss", lambda *a: losses.append(measure(*a)) or losses[-1])
    piece = quantize_subblock(problem, kind, "parent@int8", None)
    assert len(losses) == 1 + len(EXPONENTS) + 1  # the float piece, exponents, and one compensated rounding
    assert len(set(losses)) == len(losses)
    assert (piece.loss_before, piece.loss_after) == (losses[0], min(losses[1:]))
    assert piece.weights is tried[losses[1:].index(min(losses[1:]))]
    best = EXPONENTS[losses[1:-1].index(min(losses[1:-1]))]
    compensated = losses[-1] == min(losses[1:])
    assert piece.rounding == f"{'compensated' if compensated else 'nearest'}, smoothing {best:g}"


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_matrices_of_equal_inputs_are_smoothed_alike_and_fused(model, kind):
    piece = quantize_subblock(problem_of(model), kind, "parent@int8", None)
    names = ("q_proj", "k_proj", "v_proj") if kind == "attention" else ("gate_proj", "up_proj")
    assert all(torch.equal(piece.weights[f"{n}.smooth"], piece.weights[f"{names[0]}.smooth"]) for n in names)
    fast = copy.deepcopy(model)
    fast.model.layers[1] = quantized_layer(model, kind, "parent@int8", piece.weights)
    joined = [module.sizes for module in pack(fast).model.layers[1].modules() if isinstance(module, PackedLinear)]
    assert any(len(sizes) == len(names) for sizes in joined)


def test_query_heads_of_a_kv_head_can_share_their_smoothing(model, monkeypatch):
    monkeypatch.setattr(quantize, "EXPONENTS", (0.5,))
    problem, shape = problem_of(model), Shape.of(model.config)
    alone = quantize_subblock(problem, "attention", "parent@int8", None).weights
    pieces = quantize_subblock(problem, "attention", "parent@int8", None, shared_smoothing=True).weights
    by_head = pieces["o_proj.smooth"].view(shape.kv_heads, -1, shape.head_dim)
    assert torch.equal(by_head, by_head[:, :1].expand_as(by_head))
    assert not torch.equal(pieces["o_proj.smooth"], alone["o_proj.smooth"])
    assert torch.equal(pieces["q_proj.smooth"], alone["q_proj.smooth"])
    factors = torch.tensor([1.0, 4, 16, 9, 3, 2, 27, 8])  # two KV heads, each of two query heads of width 2
    expected = torch.tensor([4.0, 6, 4, 6, 9, 4, 9, 4])
    assert shared_by_values(factors, 2, 2).allclose(expected)


def test_statistics_are_of_each_matrixs_own_inputs(model):
    problem = problem_of(model)
    layer = replaced(model, 1, "ffn", "parent", subblock(decoder_layers(model)[1], "ffn").state_dict())
    linears = {name: getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")}
    groups = {tuple(names): s for names, s in quantize._groups(problem, layer, "ffn", linears)}
    assert groups.keys() == {("gate_proj", "up_proj"), ("down_proj",)}
    inputs = problem.calibration("ffn").inputs
    torch.testing.assert_close(
        groups["gate_proj", "up_proj"].moment, inputs.double().t() @ inputs.double(), rtol=1e-4, atol=1e-3
    )
    hidden = layer.mlp.act_fn(layer.mlp.gate_proj(inputs)) * layer.mlp.up_proj(inputs)
    torch.testing.assert_close(groups["down_proj",].largest, hidden.abs().amax(0))


def test_statistics_are_of_each_factors_own_inputs(model):
    problem = problem_of(model)
    layer = replaced(model, 1, "ffn", "lowrank-8", source_of(problem, "ffn", "lowrank-8"))
    separate_factors(layer.mlp)
    linears = {name: module for name, module in layer.mlp.named_modules() if isinstance(module, torch.nn.Linear)}
    groups = {tuple(names): s for names, s in quantize._groups(problem, layer, "ffn", linears)}
    own = [(f"{name}_proj.{f}",) for name, f in (("gate", "up"), ("up", "up"), ("down", "down"), ("down", "up"))]
    assert groups.keys() == {("gate_proj.down", "up_proj.down"), *own}
    inputs = problem.calibration("ffn").inputs
    torch.testing.assert_close(groups["gate_proj.up",].largest, layer.mlp.gate_proj.down(inputs).abs().amax(0))
    torch.testing.assert_close(groups["gate_proj.down", "up_proj.down"].largest, inputs.abs().amax(0))


@pytest.mark.parametrize("variant", ["parent@int8", "parent@bf16", "parent@fp8", "parent@q8_0"])
def test_the_heads_loss_is_its_kl(model, variant):
    tokens = tokens_for(model)
    piece = quantize_head(model, StreamedActivations(model, tokens, 4), variant, 0.25)
    head = replace_head(model.lm_head, variant.partition("@")[2], piece.weights)
    with torch.inference_mode():
        normed = model.model(tokens[-2:]).last_hidden_state[:, ::4]
        float_head, quantized = (
            torch.distributions.Categorical(logits=h(normed).double()) for h in (model.lm_head, head)
        )
        kl = torch.distributions.kl_divergence(float_head, quantized).mean()
    assert piece.loss_before == 0
    assert piece.loss_after == pytest.approx(kl.item(), rel=1e-2, abs=1e-6)
    assert 0 < piece.loss_after < 1e-2
    names = {"weight"} if variant.endswith(("bf16", "q8_0")) else {"weight", "scale", "smooth"}
    assert piece.weights.keys() == names


def test_a_replaced_head_leaves_the_parents_alone(model):
    before = model.lm_head.weight.clone()
    head = replace_head(model.lm_head, "bf16", {"weight": -before.bfloat16()})
    assert not head.training
    assert not head.weight.requires_grad
    x = seeded(3, model.config.hidden_size)
    torch.testing.assert_close(head(x), -model.lm_head(x), rtol=0.02, atol=0.02)
    assert torch.equal(model.lm_head.weight, before)
    with pytest.raises(RuntimeError, match="scale"):
        replace_head(model.lm_head, "int8", {"weight": before.to(torch.int8)})


@pytest.fixture
def job(tiny_parent, tmp_path):
    """The parent and the corpus of the command, and a function that runs it."""
    parent = tiny_parent("qwen3")
    tokens = torch.randint(0, 328, (8, 16), generator=torch.Generator().manual_seed(0))
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": ids, "documents": [str(i)], "document_starts": [0]}
        for i, ids in enumerate(tokens.tolist())
    ]
    write_table(rows, CORPUS, tmp_path / "corpus.parquet")

    def run(folder: str, kind: str, variant: str, layers: range, source: Path | None = None, by_layer: bool = False):
        output = tmp_path / folder
        output.mkdir()
        settings = json.dumps({"batch_size": 2, "holdout_fraction": 0.25, "ridge": 1e-3, "normalize": "tensor"})
        quantize_blocks(
            settings,
            Pieces(kind, variant, layers),
            str(parent),
            str(tmp_path / "corpus.parquet"),
            str(output / "pieces.safetensors"),
            str(output / "table.parquet"),
            source=None if source is None else str(source),
            runtime=Runtime(by_layer=by_layer),
        )
        return output / "pieces.safetensors", read_table(output / "table.parquet", LIBRARY)

    return parent, tmp_path, run


@pytest.mark.parametrize(
    ("kind", "variant", "layers"),
    [
        ("attention", "parent@int8", range(1, 3)),
        ("ffn", "parent@bf16", range(0, 2)),
        ("ffn", "width-0.5@int8", range(1, 2)),
        ("ffn", "lowrank-8@fp8", range(1, 2)),
        ("head", "parent@int8", range(0, 1)),
    ],
)
def test_the_command_writes_the_same_pieces_again_and_by_layer(job, kind, variant, layers):
    parent, folder, run = job
    source = None
    if not variant.startswith("parent"):
        name = variant.partition("@")[0]
        weights = problem_of(load_model(parent).requires_grad_(False)).distill(kind, name, seed=0).weights
        source = folder / "source.safetensors"
        write_tensors(source, {tensor_name(1, kind, name): tensor for name, tensor in weights.items()}, {})
    first, table = run("first", kind, variant, layers, source)
    again, _ = run("again", kind, variant, layers, source)
    by_layer, _ = run("by-layer", kind, variant, layers, source, by_layer=True)
    assert first.read_bytes() == again.read_bytes()
    tensors, others = load_file(first), load_file(by_layer)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    assert table[["layer", "kind", "variant"]].values.tolist() == [[layer, kind, variant] for layer in layers]
    assert table.parameters.sum() == sum(tensor.numel() for tensor in tensors.values())
    prefixes = tuple(tensor_name(layer, kind, "") for layer in layers)
    assert all(name.startswith(prefixes) for name in tensors)


def test_a_parent_loaded_by_layer_gives_the_same_pieces(tiny_parent):
    folder = tiny_parent("llama", tie_word_embeddings=True)
    for kind, variant in VARIANTS:
        pieces = []
        for load in (load_model, load_by_layer):
            problem = problem_of(load(folder).requires_grad_(False))
            pieces.append(quantize_subblock(problem, kind, variant, source_of(problem, kind, variant)))
        assert pieces[0].loss_after == pieces[1].loss_after
        assert all(torch.equal(tensor, pieces[1].weights[name]) for name, tensor in pieces[0].weights.items())
