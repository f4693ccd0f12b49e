"""Configs of tiny parents of every family, architectures for them, and a hand-made library of pieces."""

import copy

import torch
from tiny_models import SIZES, tiny_config
from transformers import PreTrainedModel

from tangram.blocks import block_class
from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import GGUF_PRECISIONS
from tangram.blocks.projections import Projections
from tangram.child.assemble import assemble_state, build_child, build_config
from tangram.gguf_types import rounded
from tangram.library.rounding import round_to_nearest
from tangram.models.operators import replace_projections
from tangram.models.quantized import SCALED

HIDDEN, LAYERS, INTERMEDIATE, VOCABULARY = SIZES["hidden_size"], 5, 48, 64
OF_CHILDREN = {
    "num_hidden_layers": LAYERS,
    "intermediate_size": INTERMEDIATE,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 4,
}
OF_GEMMA = {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 8}  # not the head's width
CONFIGS = {
    "llama": tiny_config("llama", **OF_CHILDREN),
    "llama-biases": tiny_config("llama", **OF_CHILDREN, **BIASES, head_dim=16, tie_word_embeddings=True),
    "mistral-sliding": tiny_config("mistral", **OF_CHILDREN, head_dim=16, sliding_window=4),
    "qwen2": tiny_config("qwen2", **OF_CHILDREN, tie_word_embeddings=True),
    "qwen2-sliding": tiny_config("qwen2", **OF_CHILDREN, **SLIDING),
    "qwen3": tiny_config("qwen3", **OF_CHILDREN, head_dim=16),
    "qwen3-mixed": tiny_config("qwen3", **OF_CHILDREN, **SLIDING | {"max_window_layers": 2}),
    "granite": tiny_config("granite", **OF_CHILDREN, **MULTIPLIERS, tie_word_embeddings=True),
    "olmo2": tiny_config("olmo2", **OF_CHILDREN),
    "smollm3": tiny_config("smollm3", **OF_CHILDREN, no_rope_layers=[1, 0, 1, 0, 1]),
    "gemma2": tiny_config("gemma2", **OF_CHILDREN, **OF_GEMMA, attn_logit_softcapping=0.5, final_logit_softcapping=2.0),
    "gemma3_text": tiny_config("gemma3_text", **OF_CHILDREN, **OF_GEMMA, sliding_window_pattern=2),
}
PARENT_ONLY = Architecture((LayerChoice(),) * LAYERS)
UNIFORM = Architecture((LayerChoice("gqa-1", "width-0.5"),) * LAYERS)
MIXED = Architecture(
    (
        LayerChoice("no-op", "parent"),
        LayerChoice("gqa-1", "width-0.5"),
        LayerChoice("linear", "linear"),
        LayerChoice("parent", "no-op"),
        LayerChoice("parent", "parent"),
    )
)
STRUCTURED = Architecture(
    (
        LayerChoice("butterfly-8", "monarch"),
        LayerChoice("lowrank-5", "butterfly-12"),
        LayerChoice("monarch", "ntk-6"),
        LayerChoice("ntk-4", "lowrank-3"),
        LayerChoice("no-op", "butterfly-7"),
    )
)
CONSTANTS = Architecture(
    (
        LayerChoice("constant", "parent"),
        LayerChoice("gqa-1", "constant"),
        LayerChoice("constant", "constant"),
        LayerChoice("linear", "no-op"),
        LayerChoice("constant", "width-0.5"),
    )
)
FEWER_HEADS = Architecture(
    (
        LayerChoice("heads-2", "parent"),
        LayerChoice("heads-1", "width-0.5"),
        LayerChoice("parent", "linear"),
        LayerChoice("gqa-1", "no-op"),
        LayerChoice("heads-2", "parent"),
    )
)
NO_ATTENTION = Architecture(
    (LayerChoice("no-op", "parent"), *(LayerChoice("linear", "parent"),) * 2, *(LayerChoice("no-op"),) * 2)
)


QUANTIZED = Architecture(
    (
        LayerChoice("parent@int8", "width-0.5@int8"),
        LayerChoice("gqa-1", "parent@int8"),
        LayerChoice("no-op", "linear@int8"),
        *PARENT_ONLY.layers[3:],
    ),
    "parent@int8",
)


IN_BF16 = Architecture((LayerChoice("parent@bf16", "parent@bf16"),) * LAYERS, "parent@bf16")
IN_FP8 = Architecture((LayerChoice("parent@fp8", "width-0.5@fp8"),) * LAYERS, "parent@fp8")
FACTORS = Architecture(
    (
        LayerChoice("lowrank-5@int8", "lowrank-8@bf16"),
        LayerChoice("lowrank-4@bf16", "lowrank-3@int8"),
        LayerChoice("lowrank-12@int8", "ntk-6@int8"),  # k and v stay dense, as this rank has no fewer weights
        *PARENT_ONLY.layers[3:],
    )
)


def named_by_factor(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a low-rank piece's tensors by the names that its factors have as linear layers."""
    operators = {name.removesuffix(".up") for name in state if name.endswith(".up")}
    weights = {f"{o}.{factor}" for o in operators for factor in ("down", "up")}
    biases = {f"{o}.bias": f"{o}.up.bias" for o in operators}
    return {f"{name}.weight" if name in weights else biases.get(name, name): t for name, t in state.items()}


def in_eight_bits(state: dict[str, torch.Tensor], precision: str) -> dict[str, torch.Tensor]:
    """Return a piece's tensors with its matrices rounded to nearest in int8 or fp8."""
    tensors = {}
    for name, tensor in state.items():
        if tensor.ndim < 2:
            tensors[name] = tensor
            continue
        rounded, scale = round_to_nearest(tensor.float(), SCALED[precision])
        prefix = name.removesuffix("weight")
        tensors |= {name: rounded, f"{prefix}scale": scale}
        tensors[f"{prefix}smooth"] = torch.ones(tensor.shape[1])
    return tensors


def pieces(parent: PreTrainedModel):
    """Return a library: GQA has the first KV head, `heads-K` the first heads, a narrow FFN the first channels.

    Other weights are random.

    The head in bf16 has the parent's weights with the other sign; int8 and fp8 are rounded to nearest.
    """

    def piece(kind: str, variant: str, layer: int) -> dict[str, torch.Tensor]:
        source, _, precision = variant.partition("@")
        if precision in GGUF_PRECISIONS:
            state = piece(kind, source, layer)
            return {n: rounded(t, precision, n) if t.ndim > 1 else t for n, t in state.items()}
        if precision in SCALED:
            return in_eight_bits(named_by_factor(piece(kind, source, layer)), precision)
        if kind != "head" and precision:
            state = named_by_factor(piece(kind, source, layer))
            return {name: tensor.bfloat16() if tensor.ndim > 1 else tensor for name, tensor in state.items()}
        if (kind, variant) == ("head", "parent"):
            return dict(parent.lm_head.state_dict())
        if kind == "head":
            assert (variant, layer) == ("parent@bf16", 0)
            return {"weight": -parent.lm_head.weight.detach().bfloat16()}
        stock = parent.model.layers[layer]
        state = dict((stock.self_attn if kind == "attention" else stock.mlp).state_dict())
        head_dim = stock.self_attn.head_dim
        if variant == "no-op":
            return {}
        if variant == "parent" or variant.startswith("window-"):
            return state
        if variant == "constant":
            return {"vector": torch.randn(HIDDEN, generator=torch.Generator().manual_seed(layer)) / 4}
        if variant in ("linear", "linear-unbiased"):
            generator = torch.Generator().manual_seed(layer)
            name = "linear_attn" if kind == "attention" else "linear_mlp"
            weight = torch.randn(HIDDEN, HIDDEN, generator=generator) / 8
            bias = {f"{name}.bias": torch.randn(HIDDEN, generator=generator) / 8} if variant == "linear" else {}
            return {f"{name}.weight": weight, **bias}
        if issubclass(block_class(variant), Projections):
            with torch.random.fork_rng():
                torch.manual_seed(layer)
                module = replace_projections(
                    copy.deepcopy(stock.self_attn if kind == "attention" else stock.mlp), variant
                )
                return {n: state[n] if n in state else torch.randn_like(t) / 4 for n, t in module.state_dict().items()}
        if variant == "gqa-1":
            return {n: t[:head_dim] if n.startswith(("k_proj", "v_proj", "k_norm")) else t for n, t in state.items()}
        if variant.startswith("heads-"):  # the first query heads, which read the first KV head
            rows = {"q_proj": int(variant[-1]) * head_dim, "k_proj": head_dim, "v_proj": head_dim}
            rows |= {"q_norm": rows["q_proj"], "k_norm": head_dim}  # norms of one head are no longer
            cut = {n: t[: rows[n[:6]]] for n, t in state.items() if n[:6] in rows}
            return {**state, **cut, "o_proj.weight": state["o_proj.weight"][:, : rows["q_proj"]]}
        assert variant == "width-0.5"
        half = len(state["up_proj.weight"]) // 2
        cut = {n: t[:half] for n, t in state.items() if n.startswith(("gate_proj", "up_proj"))}
        return {**state, **cut, "down_proj.weight": state["down_proj.weight"][:, :half]}

    return piece


def child_of(parent: PreTrainedModel, architecture: Architecture) -> PreTrainedModel:
    """Return the child, assembled in memory."""
    config = build_config(parent.config, architecture)
    return build_child(config, assemble_state(parent.state_dict(), architecture, pieces(parent)))
