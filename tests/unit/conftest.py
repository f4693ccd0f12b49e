"""Tiny random parents."""

import pytest
import torch
from tiny_children import CONFIGS
from tiny_models import random_model
from transformers import PreTrainedModel


@pytest.fixture(params=CONFIGS)
def parent(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random parent of every family and shape."""
    torch.set_num_threads(1)
    return random_model(CONFIGS[request.param])


@pytest.fixture
def llama() -> PreTrainedModel:
    """The tiny Llama with biases and a tied head, where one family is enough."""
    torch.set_num_threads(1)
    return random_model(CONFIGS["llama-biases"])
