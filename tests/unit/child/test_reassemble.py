"""A child made from another one: trained weights stay where the variant does, and pieces replace the others."""

import pytest
import torch
from tiny_children import CONFIGS, LAYERS, PARENT_ONLY, child_of, pieces
from tiny_models import random_model

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.child.assemble import assemble_state, build_child, build_config
from tangram.child.reassemble import Child, reassemble_state

FIRST = Architecture((LayerChoice("gqa-1", "width-0.5"), LayerChoice("linear", "parent"), *PARENT_ONLY.layers[2:]))
SECOND = Architecture(
    (LayerChoice("gqa-1", "no-op"), LayerChoice("linear", "width-0.5"), *PARENT_ONLY.layers[2:-1], LayerChoice("no-op"))
)


def trained_child(parent):
    """Return a child whose weights all differ from those of the parent and the pieces."""
    state = {name: tensor + 1 for name, tensor in child_of(parent, FIRST).state_dict().items()}
    return Child(FIRST, state)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_equal_subblocks_keep_their_weights(family):
    parent = random_model(CONFIGS[family])
    child, piece = trained_child(parent), pieces(parent)
    state = reassemble_state(parent.state_dict(), child, SECOND, piece)
    plain = assemble_state(parent.state_dict(), SECOND, piece)
    assert state.keys() == plain.keys()
    replaced = ("model.layers.1.mlp.",)
    for name, tensor in state.items():
        expected = plain[name] if name.startswith(replaced) else child.state.get(name)
        assert expected is not None, name
        assert torch.equal(tensor, expected), name
    build_child(build_config(parent.config, SECOND), state)  # every tensor has its place


def test_a_norm_that_the_child_lacks_is_the_parents():
    parent = random_model(CONFIGS["gemma2"])  # whose linear maps have no norm after them
    child = trained_child(parent)
    again = Architecture((FIRST.layers[0], LayerChoice("gqa-1", "parent"), *FIRST.layers[2:]))
    state = reassemble_state(parent.state_dict(), child, again, pieces(parent))
    name = "model.layers.1.post_attention_layernorm.weight"
    assert name not in child.state
    assert torch.equal(state[name], parent.state_dict()[name])
    assert len(again.layers) == LAYERS


def test_a_replaced_subblock_is_not_the_parents_again():
    parent = random_model(CONFIGS["llama"])
    with pytest.raises(ValueError, match="cannot be the parent's again"):
        reassemble_state(parent.state_dict(), trained_child(parent), PARENT_ONLY, pieces(parent))
