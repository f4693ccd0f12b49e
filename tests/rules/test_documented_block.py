"""The code of docs/adding-a-block.md: it registers, builds and is exact."""

import re
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

from tangram.blocks import REGISTRY, get_block, registry
from tangram.models.families import Shape, decoder_layers
from tangram.models.replace import replace_subblocks

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-block.md"


def test_the_documented_block_works_as_it_stands() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50)).eval().requires_grad_(False)
    parent = decoder_layers(model)[0]
    registry()
    with patch.dict(REGISTRY):  # removes the block afterwards
        exec(code, {"__name__": "documented"})
        block = get_block("ffn", "first-0.5", Shape.of(model.config))
    weights = block.initialize(parent.mlp, None)
    child = replace_subblocks(parent, model.config, 0, block.overrides(), {"ffn": weights}).mlp
    x = torch.randn(3, 24)
    hidden = silu(parent.mlp.gate_proj(x)) * parent.mlp.up_proj(x)
    torch.testing.assert_close(child(x), hidden[:, :16] @ parent.mlp.down_proj.weight[:, :16].T)
    assert block.relative_size() == 0.5
