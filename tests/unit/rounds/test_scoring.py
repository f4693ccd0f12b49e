"""Scores in a child against the naive way: a whole child with the piece, a full forward pass, the parent's logits."""

import pytest
import torch
from tiny_children import CONFIGS, PARENT_ONLY, VOCABULARY, child_of, pieces
from tiny_models import random_model

from tangram.activations import StreamedActivations
from tangram.blocks import get_block
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import build_child, build_config
from tangram.child.reassemble import Child, reassemble_state
from tangram.models.families import Shape
from tangram.rounds.scoring import ReplaceInChild, increases
from tangram.scores.replace_one import scored_positions

CHILD = Architecture((LayerChoice("gqa-1", "width-0.5"), LayerChoice("linear", "parent"), *PARENT_ONLY.layers[2:]))
TOKENS = torch.randint(2, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(0))
PIECES = [(0, "ffn", "no-op"), (1, "ffn", "width-0.5"), (3, "attention", "gqa-1"), (0, "head", "parent@bf16")]


def true_metrics(model, parent) -> dict[str, float]:
    """Return KL(parent ‖ model) and the increase of the LM loss at the scored positions, by whole forward passes."""
    positions = scored_positions(TOKENS.shape[1], 2)
    with torch.inference_mode():
        ours, theirs = (m(TOKENS).logits[:, positions].double() for m in (model, parent))
    distributions = [torch.distributions.Categorical(logits=logits) for logits in (theirs, ours)]
    labels = TOKENS[:, positions + 1]
    kl = torch.distributions.kl_divergence(*distributions).mean().item()
    increase = (distributions[0].log_prob(labels) - distributions[1].log_prob(labels)).mean().item()
    return {"kl": kl, "lm_loss_increase": increase}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_scores_are_those_of_assembled_children(family):
    parent = random_model(CONFIGS[family]).requires_grad_(False)
    piece, generator = pieces(parent), torch.Generator().manual_seed(1)
    trained = child_of(parent, CHILD)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    child = Child(CHILD, trained.state_dict())
    text = (StreamedActivations(parent, TOKENS, 2), TOKENS)
    scorer = ReplaceInChild(child, trained, parent, parent.state_dict(), *text, 2, 2)
    shape = Shape.of(parent.config)
    rows = []
    for layer, kind, variant in PIECES:
        rows += scorer.score_piece(layer, get_block(kind, variant, shape), piece(kind, variant, layer))
    unchanged = scorer.score_unchanged()
    own = true_metrics(trained, parent)
    assert {row["metric"]: row["value"] for row in unchanged}["kl"] == pytest.approx(own["kl"], rel=1e-3)
    scores = increases(rows, unchanged, {"kl": 1.0, "lm_loss_increase": 0.5})
    assert list(scores) == PIECES
    for layer, kind, variant in PIECES:
        layers, head = list(CHILD.layers), variant if kind == "head" else CHILD.head
        if kind != "head":
            layers[layer] = LayerChoice(**{**vars(layers[layer]), kind: variant})
        architecture = Architecture(tuple(layers), head)
        state = reassemble_state(parent.state_dict(), child, architecture, piece)
        true = true_metrics(build_child(build_config(parent.config, architecture), state), parent)
        expected = true["kl"] - own["kl"] + 0.5 * (true["lm_loss_increase"] - own["lm_loss_increase"])
        assert scores[layer, kind, variant] == pytest.approx(expected, rel=2e-3, abs=1e-5)
