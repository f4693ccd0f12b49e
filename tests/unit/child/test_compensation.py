"""Compensation of removed subblocks against stacked least squares on whole forward passes."""

import pytest
import torch
from tiny_children import CONFIGS, LAYERS, VOCABULARY, child_of, pieces
from tiny_models import random_model

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_child, build_config
from tangram.child.compensation import compensate, with_removed_behind
from tangram.errors import TangramError
from tangram.models.by_layer import load_by_layer

GAPS = Architecture(
    (
        LayerChoice("parent", "no-op"),
        LayerChoice("no-op", "width-0.5"),
        LayerChoice("gqa-1", "parent"),
        LayerChoice("no-op", "no-op"),
        LayerChoice("linear", "no-op"),
    )
)
O_PROJ, DOWN_PROJ = "model.layers.0.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"
TOKENS = torch.randint(2, VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(0))
PRE_NORM = ["llama", "mistral-sliding", "qwen2", "qwen3-mixed", "granite", "smollm3"]


def parent_of(family):
    return random_model(CONFIGS[family]).requires_grad_(False)


def state_of(parent, architecture):
    return assemble_state(parent.state_dict(), architecture, pieces(parent))


@torch.no_grad()
def inputs_of(model, name) -> torch.Tensor:
    """Return the inputs of a module in a whole forward pass, ``(tokens, width)``."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
    model(TOKENS)
    hook.remove()
    return found[0].flatten(0, -2)


def least_squares(child, parent, name, before, behind, ridge) -> torch.Tensor:
    """Return the matrix that moves the child's stream ``before`` its subblock to the parent's ``behind`` others.

    Both are names of modules that read the residual stream; the ridge is further rows of the equations.
    """
    weight = child.state_dict()[name].clone()
    x, r, h = inputs_of(child, name.removesuffix(".weight")), inputs_of(child, before), inputs_of(parent, behind)
    share = 1 / h.square().mean(1, keepdim=True)
    root = (ridge * (x.square() * share).sum(0).mean()).sqrt()
    goals = (h - r) / getattr(parent.config, "residual_multiplier", 1.0)
    rows = torch.cat([x * share.sqrt(), root * torch.eye(x.shape[1])]).double()
    wanted = torch.cat([goals * share.sqrt(), root * weight.T]).double()
    return torch.linalg.lstsq(rows, wanted).solution.T.float()


@pytest.mark.parametrize("family", PRE_NORM)
def test_matrices_are_the_least_squares_solutions(family):
    parent = parent_of(family)
    state = state_of(parent, GAPS)
    fitted = compensate(state, GAPS, parent, TOKENS, 0.2)
    changed = {name for name in state if not torch.equal(state[name], fitted[name])}
    assert changed == {O_PROJ, DOWN_PROJ}
    child = build_child(build_config(parent.config, GAPS), state)
    # Behind layer 0's attention, the FFN and layer 1's attention are removed, and the stream enters layer 1's FFN;
    # behind layer 2's FFN, layer 3 is removed, and the stream enters layer 4.
    for name, before, behind in (
        (O_PROJ, "model.layers.0.input_layernorm", "model.layers.1.post_attention_layernorm"),
        (DOWN_PROJ, "model.layers.2.post_attention_layernorm", "model.layers.4.input_layernorm"),
    ):
        expected = least_squares(child, parent, name, before, behind, 0.2)
        assert torch.allclose(fitted[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
        child.load_state_dict({name: fitted[name]}, strict=False)


def test_what_is_removed_at_the_beginning_is_made_up_for_later():
    parent = parent_of("llama")
    layers = LayerChoice("no-op", "parent"), LayerChoice("parent", "no-op"), *(LayerChoice(),) * (LAYERS - 2)
    architecture, name = Architecture(layers), "model.layers.1.self_attn.o_proj.weight"
    state = state_of(parent, architecture)
    fitted = compensate(state, architecture, parent, TOKENS, 0.2)
    child = build_child(build_config(parent.config, architecture), state)
    between = "model.layers.1.input_layernorm", "model.layers.2.input_layernorm"
    expected = least_squares(child, parent, name, *between, 0.2)
    assert torch.allclose(fitted[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_a_large_ridge_changes_nothing():
    parent = parent_of("llama")
    state = state_of(parent, GAPS)
    fitted = compensate(state, GAPS, parent, TOKENS, 1e9)
    assert all(torch.allclose(state[name], fitted[name], atol=1e-6) for name in state)


def test_a_child_that_lacks_nothing_stays_as_it_is():
    parent = parent_of("llama")
    architecture = Architecture((LayerChoice("no-op"), *(LayerChoice("gqa-1", "width-0.5"),) * (LAYERS - 1)))
    state = state_of(parent, architecture)
    fitted = compensate(state, architecture, parent, TOKENS, 0.1)
    assert all(torch.equal(state[name], fitted[name]) for name in state)
    assert [gone for _, gone in with_removed_behind(architecture)] == [[]] * (2 * LAYERS - 1)


@pytest.mark.parametrize("precision", ["int8", "bf16", "f16"])
def test_a_matrix_keeps_its_precision(precision):
    parent = parent_of("llama")
    choice = LayerChoice(f"parent@{precision}", f"parent@{precision}")
    architecture = Architecture((choice, LayerChoice("no-op", f"parent@{precision}"), choice, choice, choice))
    state = state_of(parent, architecture)
    fitted = compensate(state, architecture, parent, TOKENS, 0.2)
    prefix = "model.layers.0.mlp.down_proj."
    assert {name: t.dtype for name, t in fitted.items()} == {name: t.dtype for name, t in state.items()}
    changed = {name for name in state if not torch.equal(state[name], fitted[name])}
    assert f"{prefix}weight" in changed
    assert all(name.startswith(prefix) for name in changed)
    if precision == "f16":
        assert torch.equal(fitted[f"{prefix}weight"], fitted[f"{prefix}weight"].half().float())
    config, behind = build_config(parent.config, architecture), "model.layers.1.post_attention_layernorm"
    goal = inputs_of(parent, behind)
    before, after = (inputs_of(build_child(config, each), behind) - goal for each in (state, fitted))
    share = 1 / goal.square().mean(1, keepdim=True)
    assert (after.square() * share).sum() < 0.8 * (before.square() * share).sum()


def test_attention_with_a_window_is_fitted_on_its_outputs():
    parent = parent_of("llama")
    architecture = Architecture((LayerChoice("window-4", "no-op"), *(LayerChoice(),) * (LAYERS - 1)))
    fitted = compensate(parent.state_dict(), architecture, parent, TOKENS, 0.2)
    whole = Architecture((LayerChoice("parent", "no-op"), *architecture.layers[1:]))
    assert not torch.equal(fitted[O_PROJ], compensate(parent.state_dict(), whole, parent, TOKENS, 0.2)[O_PROJ])


def test_a_parent_by_layer_gives_the_same_matrices(tmp_path):
    parent = parent_of("llama")
    parent.save_pretrained(tmp_path)
    state = state_of(parent, GAPS)
    fitted = compensate(state, GAPS, parent, TOKENS, 0.2)
    by_layer = compensate(state, GAPS, load_by_layer(tmp_path), TOKENS, 0.2)
    assert all(torch.equal(fitted[name], by_layer[name]) for name in state)


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "gemma3_text"])
def test_norms_behind_subblocks_are_refused(family):
    parent = parent_of(family)
    with pytest.raises(TangramError, match=r"config\.assembly\.compensate: .* norms behind its subblocks"):
        compensate(parent.state_dict(), GAPS, parent, TOKENS, 0.2)


def test_the_fitted_child_is_nearer_to_the_parent():
    parent = parent_of("llama")
    state = state_of(parent, GAPS)
    fitted = compensate(state, GAPS, parent, TOKENS, 0.05)
    children = (child_of(parent, GAPS), build_child(build_config(parent.config, GAPS), fitted))
    goal = inputs_of(parent, "model.norm")
    errors = [(inputs_of(child, "model.norm") - goal).square().sum() for child in children]
    assert errors[1] < errors[0]
