"""The heterogeneous model against stock models that compute the same, and in an environment without this package."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_children import (
    CONFIGS,
    CONSTANTS,
    FACTORS,
    FEWER_HEADS,
    IN_BF16,
    IN_FP8,
    INTERMEDIATE,
    LAYERS,
    MIXED,
    NO_ATTENTION,
    PARENT_ONLY,
    QUANTIZED,
    STRUCTURED,
    UNIFORM,
    VOCABULARY,
    child_of,
    pieces,
)
from tiny_models import implementations, random_model
from torch import nn
from transformers import DynamicCache

from tangram.blocks import block_class
from tangram.blocks.architecture import heterogeneous_config
from tangram.blocks.projections import Projections
from tangram.child.assemble import build_child, save_child
from tangram.models.operators import StructuredLinear, replace_projections

NORMS_AFTER = {"attention": "post_attention_layernorm", "ffn": "post_feedforward_layernorm"}
WITH_NORMS_AFTER = ("olmo2", "gemma2", "gemma3_text")
TOKENS = torch.arange(2, 2 + 2 * 9).view(2, 9) * 7 % VOCABULARY


class Affine(nn.Module):
    """A linear map that returns what stock attention returns, or what a stock FFN does."""

    def __init__(self, piece: dict[str, torch.Tensor], attention: bool):
        super().__init__()
        self.weight, self.bias = (next(t for n, t in piece.items() if n.endswith(e)) for e in ("weight", "bias"))
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, **_):
        mapped = hidden_states @ self.weight.T + self.bias
        return (mapped, None) if self.attention else mapped


class Always(nn.Module):
    """Returns one vector for every token, as stock attention returns it, or as a stock FFN does."""

    def __init__(self, piece: dict[str, torch.Tensor], attention: bool):
        super().__init__()
        (self.vector,) = piece.values()
        self.attention = attention

    def forward(self, hidden_states: torch.Tensor, **_):
        output = self.vector.repeat(*hidden_states.shape[:2], 1)
        return (output, None) if self.attention else output


class NormOfFirst(nn.Module):
    """A norm that divides by the root mean square of the first features."""

    def __init__(self, norm: nn.Module, features: int):
        super().__init__()
        self.weight, self.epsilon, self.features = norm.weight, norm.variance_epsilon, features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / (x[..., : self.features].square().mean(-1, keepdim=True) + self.epsilon).sqrt()


@torch.no_grad()
def multiply_out(subblock, variant, piece):
    """Put the whole matrices that operators stand for into a stock subblock."""
    operators = replace_projections(copy.deepcopy(subblock), variant)
    operators.load_state_dict(piece)
    found = {name: module for name, module in operators.named_children() if isinstance(module, StructuredLinear)}
    assert found
    for name, operator in found.items():
        getattr(subblock, name).weight.copy_(operator.matrix())


@torch.no_grad()
def stock_equivalent(parent, architecture):
    """The parent, changed without this package so that it computes what the child must."""
    model, piece = copy.deepcopy(parent), pieces(parent)
    for index, choice in enumerate(architecture.layers):
        layer = model.model.layers[index]
        for kind, norm in NORMS_AFTER.items() if model.config.model_type in WITH_NORMS_AFTER else ():
            if getattr(choice, kind) in ("linear", "constant"):  # they contribute their outputs as they are
                setattr(layer, norm, nn.Identity())
        for kind, subblock in (("attention", layer.self_attn), ("ffn", layer.mlp)):
            if issubclass(block_class(variant := getattr(choice, kind)), Projections):
                multiply_out(subblock, variant, piece(kind, variant, index))
        if choice.attention == "no-op":
            for tensor in layer.self_attn.o_proj.parameters():
                tensor.zero_()
        elif choice.attention == "constant":
            layer.self_attn = Always(piece("attention", "constant", index), attention=True)
        elif choice.attention == "linear":
            layer.self_attn = Affine(piece("attention", "linear", index), attention=True)
        elif choice.attention == "gqa-1":  # every query group reads the one remaining head
            over_heads = [layer.self_attn.k_norm] if model.config.model_type == "olmo2" else []
            for module in (layer.self_attn.k_proj, layer.self_attn.v_proj, *over_heads):
                for tensor in module.parameters():
                    first = tensor[: layer.self_attn.head_dim].clone()
                    tensor.copy_(torch.cat([first, first]))
        elif choice.attention.startswith("heads-"):  # heads that are gone reach nothing
            if model.config.model_type == "olmo2":  # not even through the norms of all heads
                width = layer.self_attn.head_dim
                layer.self_attn.q_norm = NormOfFirst(layer.self_attn.q_norm, int(choice.attention[-1]) * width)
                layer.self_attn.k_norm = NormOfFirst(layer.self_attn.k_norm, width)
            layer.self_attn.o_proj.weight[:, int(choice.attention[-1]) * layer.self_attn.head_dim :] = 0
        if choice.ffn == "no-op":
            for tensor in layer.mlp.down_proj.parameters():
                tensor.zero_()
        elif choice.ffn == "constant":
            layer.mlp = Always(piece("ffn", "constant", index), attention=False)
        elif choice.ffn == "linear":
            layer.mlp = Affine(piece("ffn", "linear", index), attention=False)
        elif choice.ffn == "width-0.5":  # channels that are gone reach nothing
            layer.mlp.down_proj.weight[:, INTERMEDIATE // 2 :] = 0
    return model


@torch.no_grad()
@pytest.mark.parametrize("architecture", [MIXED, FEWER_HEADS, STRUCTURED, CONSTANTS, NO_ATTENTION])
def test_child_computes_what_changed_stock_blocks_compute(parent, architecture):
    child = child_of(parent, architecture)
    reference = stock_equivalent(parent, architecture)(TOKENS, use_cache=False).logits
    for implementation in implementations(child):
        child.set_attn_implementation(implementation)
        assert torch.allclose(child(TOKENS).logits, reference, atol=5e-5)  # eager and fused attention round otherwise
    assert not torch.allclose(parent(TOKENS).logits, reference, atol=1e-2)


@torch.no_grad()
def test_child_of_parent_blocks_is_bit_identical_to_the_parent(parent):
    assert torch.equal(child_of(parent, PARENT_ONLY)(TOKENS).logits, parent(TOKENS).logits)
    built_by_layer = build_child(heterogeneous_config(parent.config, PARENT_ONLY), parent.state_dict())
    assert type(built_by_layer).__name__.startswith("Tangram")
    assert torch.equal(built_by_layer(TOKENS).logits, parent(TOKENS).logits)


@torch.no_grad()
def test_a_uniform_child_is_a_stock_model_of_the_same_numbers(parent):
    child = child_of(parent, UNIFORM)
    assert type(child) is type(parent)
    assert child.config.intermediate_size == INTERMEDIATE // 2
    assert torch.allclose(child(TOKENS).logits, stock_equivalent(parent, UNIFORM)(TOKENS).logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", [MIXED, FEWER_HEADS, STRUCTURED, CONSTANTS, NO_ATTENTION, PARENT_ONLY])
def test_generation_with_cache_and_padding_equals_recomputation(parent, architecture):
    child, tokens = child_of(parent, architecture), TOKENS
    for _ in range(6):
        following = child(tokens, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], dim=1)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    mask = torch.ones_like(TOKENS)
    for implementation in implementations(child):
        child.set_attn_implementation(implementation)
        assert torch.equal(child.generate(TOKENS, attention_mask=mask, **greedy), tokens)
        # the second row beside a longer first one
        longer = torch.cat([TOKENS[:1, :3], TOKENS[:1]], dim=1)
        padded = torch.cat([longer, nn.functional.pad(TOKENS[1:], (3, 0), value=0)])
        padding = torch.ones_like(padded)
        padding[1, :3] = 0
        generated = child.generate(padded, attention_mask=padding, **greedy)
        assert torch.equal(generated[1, 3:], tokens[1])


WAYS = [
    {"cache_implementation": "static", "prefill_chunk_size": 4},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 4},
    {"prompt_lookup_num_tokens": 3},
    {"num_beams": 3},
]


@torch.no_grad()
@pytest.mark.parametrize("architecture", [MIXED, FEWER_HEADS, STRUCTURED, CONSTANTS, NO_ATTENTION])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_every_way_to_generate_equals_recomputing_everything(parent, architecture, way):
    child = child_of(parent, architecture)
    settings = {"max_new_tokens": 6, "do_sample": False}
    plain = {**settings, "use_cache": False} | ({"num_beams": way["num_beams"]} if "num_beams" in way else {})
    generated = child.generate(TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), **settings, **way)
    assert torch.equal(generated, child.generate(TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]), **plain))


@torch.no_grad()
@pytest.mark.parametrize("architecture", [MIXED, FEWER_HEADS, STRUCTURED, CONSTANTS, NO_ATTENTION])
def test_a_cropped_cache_goes_on_from_where_it_was_cropped(parent, architecture):
    child = child_of(parent, architecture)
    cache = DynamicCache(config=child.config)
    cache.activate_past_recording()
    child(TOKENS, past_key_values=cache, use_cache=True)
    cache.crop(-2)
    after = child(TOKENS[:, -2:], past_key_values=cache, use_cache=True, position_ids=torch.arange(7, 9)[None])
    assert torch.allclose(after.logits, child(TOKENS).logits[:, -2:], atol=1e-5)


@torch.no_grad()
def test_an_assistant_child_drafts_for_its_parent(parent):
    child = child_of(parent, MIXED)
    settings = {"attention_mask": torch.ones_like(TOKENS[:1]), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(
        parent.generate(TOKENS[:1], assistant_model=child, **settings), parent.generate(TOKENS[:1], **settings)
    )


def test_layers_without_attention_hold_no_cache(llama):
    cache = child_of(llama, MIXED)(TOKENS, use_cache=True).past_key_values
    assert [None if layer.keys is None else layer.keys.shape[1] for layer in cache.layers] == [None, 1, None, 2, 2]
    assert cache.get_seq_length() == TOKENS.shape[1]


@torch.no_grad()
def test_hidden_states_are_layer_inputs_and_the_normed_output(parent):
    child, inputs = child_of(parent, MIXED), []
    for layer in child.model.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(args[0]), with_kwargs=True)
    outputs = child(TOKENS, output_hidden_states=True)
    assert len(outputs.hidden_states) == LAYERS + 1
    assert all(torch.equal(state, seen) for state, seen in zip(outputs.hidden_states, inputs, strict=False))
    logits, config = child.lm_head(outputs.hidden_states[-1]), child.config
    logits = logits / getattr(config, "logits_scaling", 1)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    assert torch.equal(logits, outputs.logits)


def test_a_changed_attention_implementation_reaches_the_layers(parent):
    child = child_of(parent, MIXED)
    child.set_attn_implementation("eager")
    attentions = child(TOKENS, output_attentions=True).attentions  # sdpa has none to give
    assert [tuple(weights.shape) for weights in attentions] == [(2, 4, 9, 9)] * 3


def test_gradient_checkpointing_gives_the_same_gradients(parent):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        child = child_of(parent, MIXED).train()
        if checkpointing:
            child.activation_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in child.model.layers)
        child(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        return [parameter.grad for parameter in child.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-6)


ELSEWHERE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tangram":
            raise ImportError("tangram is not installed here")
sys.meta_path.insert(0, Blocker())
try:
    import tangram
except ImportError:
    pass
else:
    sys.exit("tangram can be imported")
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    expected = load_file(folder / "expected" / "tensors.safetensors")
    stock = "stock" in folder.name
    try:
        plain = AutoModelForCausalLM.from_pretrained(folder)
    except ValueError as error:
        assert not stock and "trust_remote_code=True" in str(error), error
    else:
        assert stock and type(plain).__module__.startswith("transformers.models"), type(plain)
    load = lambda path: AutoModelForCausalLM.from_pretrained(path, trust_remote_code=not stock)
    model = load(folder)
    model.save_pretrained(folder / "again")
    for model in (model, load(folder / "again")):
        assert type(model).__module__.startswith("transformers_modules") != stock, type(model)
        with torch.no_grad():
            assert torch.equal(model(expected["tokens"]).logits, expected["logits"]), folder
        generated = model.generate(
            expected["padded"], attention_mask=expected["mask"], max_new_tokens=4, do_sample=False
        )
        assert torch.equal(generated, expected["generated"]), folder
    if not stock:
        with torch.no_grad():
            packed = load(folder).pack()(expected["tokens"]).logits
        error = (packed - expected["logits"]).norm() / expected["logits"].norm()
        assert error < (0.02 if "in-" in folder.name else 1e-5), folder
    print(f"\\nright: {folder.name}")
"""


@torch.no_grad()
def test_checkpoint_loads_where_this_package_cannot_be_imported(tmp_path):
    torch.set_num_threads(1)
    padded = nn.functional.pad(TOKENS, (2, 0), value=0)
    mask = (torch.arange(padded.shape[1]) >= 2).long().expand(2, -1).contiguous()
    children = [(name, a) for name in CONFIGS for a in (MIXED, STRUCTURED, QUANTIZED)] + [("qwen2", IN_BF16)]
    children += [("qwen2", FACTORS), ("llama-biases", IN_FP8)]
    children += [("llama", NO_ATTENTION), ("mistral-sliding", NO_ATTENTION), ("llama", UNIFORM), ("llama", PARENT_ONLY)]
    (tmp_path / "parent").mkdir()
    for index, (name, architecture) in enumerate(children):
        child = child_of(random_model(CONFIGS[name]), architecture)
        named = {UNIFORM: "-stock", PARENT_ONLY: "-stock", QUANTIZED: "-in-int8", IN_BF16: "-in-bf16"}
        named |= {FACTORS: "-in-factors", IN_FP8: "-in-fp8"}
        folder = tmp_path / "children" / f"{index}-{name}{named.get(architecture, '')}"
        save_child(child, child.config, tmp_path / "parent", folder, {})
        generated = child.generate(padded, attention_mask=mask, max_new_tokens=4, do_sample=False)
        expected = {"logits": child(TOKENS).logits, "generated": generated, "padded": padded, "mask": mask}
        (folder / "expected").mkdir()
        save_file({**expected, "tokens": TOKENS}, folder / "expected" / "tensors.safetensors")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(tmp_path / "children")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, input="", check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right: ") == len(children)
    assert (folder / "modeling_tangram.py").exists() is False  # the last one is stock
    assert "per-layer attribute" not in result.stderr  # transformers' warning about ambiguous global attributes
