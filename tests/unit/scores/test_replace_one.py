"""Replace-1-block scores against the naive way: a whole child, a full forward pass, all logits."""

import copy

import numpy as np
import pytest
import torch
from replaced import replaced

from tangram.activations import StreamedActivations, capture, open_activations
from tangram.blocks import get_block
from tangram.blocks.architecture import Architecture, LayerChoice, pieces_of
from tangram.blocks.calibration import Calibration
from tangram.child.assemble import assemble_state, build_child, build_config
from tangram.config import BlockDistillation
from tangram.library.coupled import closed_form
from tangram.library.distill import LayerDistillation
from tangram.library.quantize import quantize_head, quantize_subblock
from tangram.models.families import Shape, decoder_layers
from tangram.models.loading import load_model
from tangram.models.replace import replace_head, replace_subblocks
from tangram.scores.replace_one import ReplaceOne, scored_positions


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "smollm3", "gemma2", "gemma3_text"])
def model(request, tiny_parent):
    return load_model(tiny_parent(request.param), "float32", "cpu").requires_grad_(False)


@pytest.fixture
def tokens(model):
    return torch.randint(0, model.config.vocab_size, (5, 13), generator=torch.Generator().manual_seed(0))


def candidate(model, layer, kind):
    variant = "no-op" if kind == "ffn" else f"gqa-{model.config.num_key_value_heads // 2}"
    attention = decoder_layers(model)[layer].self_attn
    states = torch.randn(40, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    given = Calibration(inputs=states, outputs=states, weights=torch.ones(40), ridge=1e-3)
    weights = {} if kind == "ffn" else get_block(kind, variant, Shape.of(model.config)).initialize(attention, given)
    return replaced(model, layer, kind, variant, weights)


@pytest.mark.parametrize("kind", ["attention", "ffn"])
def test_scores_equal_the_naive_full_forward(model, tokens, tmp_path, kind):
    capture(model, tokens, 2, tmp_path / "states.npy", "test")
    scorer = ReplaceOne(model, open_activations(tmp_path / "states.npy", model, tokens, 2), tokens, 3, 2)
    positions = scored_positions(13, 3)
    for layer in range(model.config.num_hidden_layers):
        piece = candidate(model, layer, kind)
        rows = {row["metric"]: row for row in scorer.score(layer, piece)}
        child = copy.deepcopy(model)
        child.model.layers[layer] = piece
        with torch.inference_mode():
            outputs = [m(tokens, output_hidden_states=True) for m in (child, model)]
            ours, theirs = (output.logits[:, positions] for output in outputs)
            last = [output.hidden_states[-1][:, positions].double().numpy() for output in outputs]
        labels = tokens[:, positions + 1]
        distributions = [torch.distributions.Categorical(logits=logits.double()) for logits in (theirs, ours)]
        kl = torch.distributions.kl_divergence(*distributions)
        increase = distributions[0].log_prob(labels) - distributions[1].log_prob(labels)
        norms = [np.linalg.norm(states, axis=-1) for states in last]
        cosine = (last[0] * last[1]).sum(-1) / (norms[0] * norms[1])
        expected = {
            "kl": kl,
            "lm_loss_increase": increase,
            "cosine_distance": torch.from_numpy(1 - cosine),
            "agreement": (ours.argmax(-1) == theirs.argmax(-1)).double(),
        }
        for name, values in expected.items():
            assert rows[name]["value"] == pytest.approx(values.mean().item(), rel=1e-3, abs=1e-6), name
            error = values.mean(1).std() / len(values) ** 0.5
            assert rows[name]["standard_error"] == pytest.approx(error.item(), rel=1e-2, abs=1e-6), name
            assert rows[name]["tokens"] == values.numel()


def test_scores_in_bfloat16_are_nearly_those_in_float32(model, tokens):
    states = StreamedActivations(model, tokens, 5)
    exact, rounded = (
        ReplaceOne(model, states, tokens, 3, 2, compute=compute).score(1, candidate(model, 1, "ffn"))[0]["value"]
        for compute in ("float32", "bfloat16")
    )
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1, abs=1e-3)


def kl_of(child, model, tokens, positions) -> torch.Tensor:
    """Return KL(parent ‖ child) by whole forward passes in float64, ``(sequences, positions)``."""
    with torch.inference_mode():
        logits = [m(tokens).logits[:, positions].double() for m in (model, child)]
    return torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=each) for each in logits))


def quantized(model, tokens, kind, variant):
    """Return a quantized piece of layer 1, or of the head."""
    states = StreamedActivations(model, tokens, 5)
    if kind == "head":
        return quantize_head(model, states, variant, 0.25).weights
    problem = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation())
    return quantize_subblock(problem, kind, variant, None).weights


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("attention", "parent@int8"), ("ffn", "parent@int8"), ("ffn", "parent@bf16"), ("head", "parent@int8")],
)
def test_a_quantized_pieces_score_is_that_of_a_child_with_it(model, tokens, kind, variant):
    weights = quantized(model, tokens, kind, variant)
    scorer = ReplaceOne(model, StreamedActivations(model, tokens, 5), tokens, 3, 2)
    if kind == "head":
        rows = scorer.score_head(replace_head(model.lm_head, "int8", weights))
        architecture = Architecture((LayerChoice(),) * 3, variant)
    else:
        entries = get_block(kind, variant, Shape.of(model.config)).entries()
        layer = replace_subblocks(decoder_layers(model)[1], model.config, 1, entries, {kind: weights})
        rows = scorer.score(1, layer)
        architecture = Architecture((LayerChoice(), LayerChoice(**{kind: variant}), LayerChoice()))
    state = assemble_state(model.state_dict(), architecture, lambda *_: weights)
    child = build_child(build_config(model.config, architecture), state)
    kl = kl_of(child, model, tokens, scored_positions(13, 3)).mean().item()
    score = {row["metric"]: row["value"] for row in rows}["kl"]
    assert 1e-6 < score < 0.1
    assert score == pytest.approx(kl, rel=0.05, abs=1e-6)  # float32; an input may be rounded to the next integer


def test_a_pairs_score_is_that_of_a_child_with_both(model, tokens):
    """The child is put together by hand: both subblocks of a layer of the parent are exchanged."""
    choice = LayerChoice(f"gqa-{model.config.num_key_value_heads // 2}", "width-0.5", coupled=True)
    states = StreamedActivations(model, tokens, 5)
    problem = LayerDistillation(model, 1, states.hidden(1), states.hidden(2), BlockDistillation(epochs=0))
    weights = closed_form(problem, choice)
    rows = ReplaceOne(model, states, tokens, 3, 2).score_pair(1, choice, weights)
    child = copy.deepcopy(model)
    child.model.layers[1] = replaced(model, 1, "attention", choice.attention, weights["attention"])
    child.model.layers[1].mlp = replaced(model, 1, "ffn", choice.ffn, weights["ffn"]).mlp
    kl = kl_of(child, model, tokens, scored_positions(13, 3))
    (row,) = [row for row in rows if row["metric"] == "kl"]
    assert (row["layer"], row["kind"], row["variant"], row["tokens"]) == (1, "block", choice.pair, kl.numel())
    assert row["value"] == pytest.approx(kl.mean().item(), rel=1e-3, abs=1e-6)
    parts = [score_alone(model, states, tokens, kind, name, weights) for kind, name in pieces_of(choice)]
    assert row["value"] > max(parts)


def score_alone(model, states, tokens, kind, variant, weights):
    """Return the KL of one subblock alone."""
    scorer = ReplaceOne(model, states, tokens, 3, 2)
    rows = scorer.score_piece(1, get_block(kind, variant, Shape.of(model.config)), weights[kind])
    return {row["metric"]: row["value"] for row in rows}["kl"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_heads_score_is_the_models_kl(model, tokens, precision):
    weights = quantized(model, tokens, "head", f"parent@{precision}")
    head = replace_head(model.lm_head, precision, weights)
    scorer = ReplaceOne(model, StreamedActivations(model, tokens, 5), tokens, 3, 2)
    rows = {row["metric"]: row for row in scorer.score_head(head)}
    child = copy.deepcopy(model)
    child.lm_head = head
    positions = scored_positions(13, 3)
    kl = kl_of(child, model, tokens, positions)
    assert rows["kl"]["value"] == pytest.approx(kl.mean().item(), rel=1e-2, abs=1e-6)
    assert rows["kl"]["tokens"] == kl.numel()
    own = {row["metric"]: row["value"] for row in scorer.score_head(model.lm_head)}
    zero = pytest.approx(0, abs=1e-6)
    assert own == {"kl": zero, "lm_loss_increase": zero, "cosine_distance": zero, "agreement": 1}
    assert rows["cosine_distance"]["value"] == zero  # a head changes no hidden state


def test_the_parents_own_layer_scores_zero(model, tokens):
    scorer = ReplaceOne(model, StreamedActivations(model, tokens, 5), tokens, 2, 5)
    rows = {row["metric"]: row["value"] for row in scorer.score(0, decoder_layers(model)[0])}
    assert rows["kl"] == pytest.approx(0, abs=1e-6)
    assert rows["lm_loss_increase"] == pytest.approx(0, abs=1e-6)
    assert rows["cosine_distance"] == pytest.approx(0, abs=1e-6)
    assert rows["agreement"] == 1


def test_positions_are_spread_and_always_have_a_next_token():
    assert scored_positions(13, 3).tolist() == [2, 5, 8, 11]
    assert scored_positions(5, 1).tolist() == [0, 1, 2, 3]
    assert scored_positions(6, 100).tolist() == [4]
