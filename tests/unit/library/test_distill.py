"""Blockwise local distillation on a tiny parent."""

import pytest
import torch
from replaced import replaced

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.config import BlockDistillation, Pruning
from tangram.errors import TangramError
from tangram.library.distill import LayerDistillation
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model


@pytest.fixture
def model(tiny_parent):
    return load_model(tiny_parent("qwen3"), "float32", "cpu").requires_grad_(False)


def local_problem(model, sequences=8, **settings):
    tokens = torch.randint(0, model.config.vocab_size, (sequences, 16), generator=torch.Generator().manual_seed(0))
    states = StreamedActivations(model, tokens, 4)
    return LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(**settings))


def gqa(model):
    return f"gqa-{model.config.num_key_value_heads // 2}"


@pytest.mark.parametrize(("sequences", "fraction"), [(1, 0.125), (1, 0.9), (2, 0.9), (4, 0.9)])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(model, sequences, fraction):
    """It gave initial weights, trained on no tokens, without a word."""
    with pytest.raises(
        TangramError, match=rf"of {sequences} sequences.* none to train on; raise corpus.distill.tokens"
    ):
        local_problem(model, sequences, holdout_fraction=fraction)


@pytest.mark.parametrize(("sequences", "fraction"), [(2, 0.01), (2, 0.5), (4, 0.75)])
def test_one_sequence_to_train_on_is_enough(model, sequences, fraction):
    assert local_problem(model, sequences, holdout_fraction=fraction).training == 1


def test_the_parents_block_has_no_loss_and_no_block_loss_one(model):
    problem = local_problem(model)
    assert problem.held_out_loss(decoder_layers(model)[1], "attention") == pytest.approx(0, abs=1e-9)
    everything = torch.arange(8)
    absent = replaced(model, 1, "ffn", "no-op", {})
    problem.middle = problem.inputs  # neither attention nor FFN
    assert problem.loss(absent, "ffn", everything).item() == pytest.approx(1, rel=1e-5)


def test_loss_is_the_papers_normalized_mse(model):
    problem = local_problem(model)
    layer = replaced(model, 1, "attention", "no-op", {})
    predicted = layer(problem.inputs, **problem.context)
    numerator = torch.nn.functional.mse_loss(predicted, problem.outputs)
    contribution = problem.outputs - problem.inputs
    expected = numerator / torch.nn.functional.mse_loss(contribution, torch.zeros_like(contribution))
    assert problem.loss(layer, "attention", torch.arange(8)).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_training_overfits_one_batch(model, kind):
    variant = gqa(model) if kind == "attention" else "width-0.5"
    problem = local_problem(model, sequences=2, epochs=300, learning_rate=1e-2, batch_size=1, holdout_fraction=0.5)
    piece = problem.distill(kind, variant, seed=0)
    losses = [row["value"] for row in piece.curve if row["metric"] == "loss"]
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("normalize", ["tensor", "token"])
def test_the_better_of_initial_and_trained_is_kept(model, normalize):
    problem = local_problem(model, epochs=5, learning_rate=3e-3, normalize=normalize)
    problem.pruning = Pruning(selection="contribution")  # which training improves
    good = problem.distill("ffn", "width-0.5", 0)
    assert good.kept == "trained"
    assert good.loss_after < good.loss_before
    bad = local_problem(model, epochs=5, learning_rate=3.0, normalize=normalize).distill("ffn", "width-0.5", 0)
    assert bad.kept == "initial"
    assert bad.loss_after > bad.loss_before
    problem = local_problem(model, normalize=normalize)
    for piece, kept in ((good, good.loss_after), (bad, bad.loss_before)):
        layer = replaced(model, 1, "ffn", "width-0.5", piece.weights)
        assert problem.held_out_loss(layer, "ffn") == pytest.approx(kept)


def test_equal_seeds_give_equal_bytes(model):
    pieces = [local_problem(model).distill("attention", gqa(model), seed=3) for _ in range(2)]
    assert all(torch.equal(pieces[0].weights[name], pieces[1].weights[name]) for name in pieces[0].weights)


@pytest.mark.parametrize(("kind", "variant"), [("attention", "linear"), ("ffn", "linear"), ("ffn", "no-op")])
def test_closed_form_pieces_are_not_trained(model, kind, variant):
    piece = local_problem(model).distill(kind, variant, 0)
    assert (piece.kept, piece.loss_after, piece.curve, piece.tokens) == ("initial", None, [], 0)


MULTIPLIED = {"residual_multiplier": 0.4, "attention_multiplier": 0.2, "embedding_multiplier": 3.0}
OTHER_LAYOUTS = [("granite", MULTIPLIED), ("olmo2", {}), ("gemma2", {"sliding_window": 8}), ("gemma3_text", {})]


@pytest.mark.parametrize(("family", "settings"), OTHER_LAYOUTS)
@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_calibration_is_what_stock_layers_compute(tiny_parent, family, settings, kind):
    model = load_model(tiny_parent(family, **settings)).requires_grad_(False)
    problem = local_problem(model)
    layer, seen = decoder_layers(model)[1], {}
    module, norm = (layer.self_attn, "attention") if kind == "attention" else (layer.mlp, "feedforward")

    def record(_, args, kwargs, output):
        seen["input"] = args[0] if args else kwargs["hidden_states"]
        seen["output"] = output[0] if isinstance(output, tuple) else output

    hook = module.register_forward_hook(record, with_kwargs=True)
    layer(problem.inputs[: problem.training], **problem.context)
    hook.remove()
    found, output = problem.calibration(kind), seen["output"]
    torch.testing.assert_close(found.inputs, seen["input"].flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.outputs, output.flatten(0, 1), rtol=1e-4, atol=1e-4)
    assert found.norm_after == (family != "granite")
    if found.norm_after:
        output = getattr(layer, f"post_{norm}_layernorm")(output)
    share = problem.weights.flatten().double() / problem.weights.double().sum()
    moments, x, y = found.moments(module), found.inputs.double(), output.flatten(0, 1).double()
    torch.testing.assert_close(moments.output_mean, share @ y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.cross_moment, x.t() @ (share[:, None] * y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "settings"), OTHER_LAYOUTS)
@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_a_fitted_map_is_the_best_map_in_every_layout(tiny_parent, family, settings, kind):
    """No change of it lowers the loss on the training tokens, so there is nothing to train."""
    model = load_model(tiny_parent(family, **settings)).requires_grad_(False)
    problem = local_problem(model, ridge=1e-9, normalize="tensor")
    layer = decoder_layers(model)[1]
    parent = layer.self_attn if kind == "attention" else layer.mlp
    weights = get_block(kind, "linear", Shape.of(model.config)).initialize(parent, problem.calibration(kind))

    def loss(tensors):
        changed = replaced(model, 1, kind, "linear", tensors)
        if kind == "attention":  # the FFN behind it would distort the squared error
            changed.mlp = None
            after = problem.middle[: problem.training]
            return (changed(problem.inputs[: problem.training]) - after).square().mean()
        predicted = problem.predict(changed, kind, slice(0, problem.training))
        return (predicted - problem.outputs[: problem.training]).square().mean()

    best = loss(weights)
    assert best < loss({name: 0 * tensor for name, tensor in weights.items()})
    for seed in range(4):
        torch.manual_seed(seed)
        for size in (1e-2, -1e-2):
            changed = {name: tensor + size * torch.randn_like(tensor) for name, tensor in weights.items()}
            assert loss(changed) > best


@pytest.mark.parametrize(("family", "settings"), OTHER_LAYOUTS)
def test_pieces_of_other_layouts_are_trained(tiny_parent, family, settings):
    model = load_model(tiny_parent(family, **settings)).requires_grad_(False)
    problem = local_problem(model, 2, epochs=60, learning_rate=1e-2, batch_size=1, holdout_fraction=0.5)
    for kind, variant in (("attention", gqa(model)), ("ffn", "width-0.5"), ("attention", "lowrank-8")):
        piece = problem.distill(kind, variant, seed=0)
        losses = [row["value"] for row in piece.curve if row["metric"] == "loss"]
        assert losses[-1] < 0.5 * losses[0]
        layer = replaced(model, 1, kind, variant, piece.weights)
        assert problem.held_out_loss(layer, kind) == pytest.approx(min(piece.loss_before, piece.loss_after), rel=1e-4)
