"""How int8 errors add up, and how much easier a parent from a quantized file is: KL in nats per token.

After `make`: ``python tests/benchmarks/bench_quantized_parent.py results/smollm2-cpu``.

The first table compares int8 versions of three parents with the parent itself: the run's parent, whose weights lie on
Q4_1's grid; the same function with weights off the grid, because the residual stream is rotated; and the parent with
uniform noise of half a step of the grid on every weight. The second and third tables compare the sum of the KLs of
single int8 pieces with the KL of all pieces together, on the text of the scores and on the held-out text. With d_i the
change of the log-probabilities by piece i, KL is about half the variance of sum(d_i) under the parent's distribution:
the pieces' own variances and the covariances of pairs.
"""

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tangram.corpus.tokens import read_tokens
from tangram.library.rounding import Statistics, round_to_nearest, smoothing
from tangram.models.loading import load_model
from tangram.models.packed import SAME_INPUT
from tangram.models.quantized import Int8Linear

GRID = 32  # weights per block of Q4_1, whose values are 16 equidistant ones
EXPONENT = 0.5  # of smoothing
CHUNK = 32  # positions whose logits are in memory for all pieces


def rotated(model: Any) -> Any:
    """Return the same function with norms folded into the matrices and the residual stream in a random basis."""
    model = copy.deepcopy(model)
    width = model.config.hidden_size
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]

    def fold(linear: nn.Linear, norm: nn.Module) -> None:
        linear.weight.data = (linear.weight.double() * norm.weight.double() @ basis).float()

    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
    fold(model.lm_head, model.model.norm)
    embedding = model.model.embed_tokens.weight
    model.model.embed_tokens.weight = nn.Parameter((embedding.double() @ basis).float())
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            fold(getattr(layer.self_attn, name), layer.input_layernorm)
        for name in ("gate_proj", "up_proj"):
            fold(getattr(layer.mlp, name), layer.post_attention_layernorm)
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data = (basis.T @ linear.weight.double()).float()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.weight.data.fill_(1.0)
    return model


def noisy(model: Any) -> Any:
    """Return the model with noise of up to half a step of Q4_1's grid on every weight of the layers."""
    model = copy.deepcopy(model)
    for linear in (m for m in model.model.layers.modules() if isinstance(m, nn.Linear)):
        blocks = linear.weight.data.view(-1, GRID)
        step = (blocks.amax(1) - blocks.amin(1)) / 15
        blocks += (torch.rand_like(blocks) - 0.5) * step[:, None]
    return model


def inputs_of(model: Any, ids: torch.Tensor) -> dict[str, Statistics]:
    """Return the statistics of every linear layer's inputs, by the layer's name."""
    statistics: dict[str, Statistics] = {}
    hooks = []
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            hook = lambda _, args, name=name: statistics.update({name: Statistics.of(args[0].flatten(0, -2))})  # noqa: E731
            hooks.append(module.register_forward_pre_hook(hook))
    model.model(ids, use_cache=False)
    for handle in hooks:
        handle.remove()
    return statistics


def quantized(model: Any, statistics: dict[str, Statistics], inputs: bool) -> Any:
    """Return the model with int8 matrices in all layers; ``inputs``: also int8 inputs, with smoothing."""
    model = copy.deepcopy(model)
    for index, layer in enumerate(model.model.layers):
        for part in ("self_attn", "mlp"):
            block = getattr(layer, part)
            linears = {name: m for name, m in block.named_children() if isinstance(m, nn.Linear)}
            groups = [[n for n in names if n in linears] for names in (*SAME_INPUT, ("o_proj",), ("down_proj",))]
            for names in filter(None, groups):
                weights = [linears[name].weight.data for name in names]
                smooth = smoothing(statistics[f"{index}.{part}.{names[0]}"], weights, EXPONENT if inputs else 0.0)
                for name, weight in zip(names, weights, strict=True):
                    rounded, scale = round_to_nearest(weight / smooth)
                    layer8 = Int8Linear(weight.shape[1], weight.shape[0])
                    layer8.load_state_dict({"weight": rounded, "scale": scale, "smooth": smooth})
                    if inputs:
                        setattr(block, name, layer8)
                    else:
                        linears[name].weight.data = layer8.matrix()
    return model


def states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the hidden states before the LM head, ``(positions, hidden)``."""
    return model.model(ids, use_cache=False).last_hidden_state.flatten(0, 1)


def divergence(parent: Any, model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return KL(parent ‖ model) by sequence, nats per token."""
    pairs = zip(states(parent, ids).split(CHUNK), states(model, ids).split(CHUNK), strict=True)
    parts = []
    for p, q in pairs:
        target = parent.lm_head(p).log_softmax(-1)
        parts.append((target.exp() * (target - model.lm_head(q).log_softmax(-1))).sum(-1))
    return torch.cat(parts).view(len(ids), -1).mean(1)


def shown(values: torch.Tensor) -> str:
    """Return mean ± standard error over sequences."""
    return f"{values.mean():.2e} ± {values.std() / math.sqrt(len(values)):.0e}"


def control(parent: Any, calibration: torch.Tensor, ids: torch.Tensor) -> None:
    """Print the KL of int8 versions of every parent from that parent."""
    print("| parent | KL from the run's parent | int8 weights | int8 weights and inputs |\n|---|---|---|---|")
    named = {"Q4_1's grid": lambda m: m, "rotated, same function": rotated, "noise of half a step": noisy}
    for name, changed in named.items():
        model = changed(parent)
        statistics = inputs_of(model, calibration)
        kls = [divergence(model, quantized(model, statistics, inputs), ids) for inputs in (False, True)]
        print(f"| {name} | {divergence(parent, model, ids).mean():.1e} | {' | '.join(map(shown, kls))} |", flush=True)


def additivity(parent: Any, child: Any, ids: torch.Tensor, text: str) -> None:
    """Print sums of single pieces' KLs and KLs of all of them together, for the first layers and for all."""
    layers = len(parent.model.layers)
    reference, joint = states(parent, ids), {}
    hidden, places = [], [(i, part) for i in range(layers) for part in ("self_attn", "mlp")]
    hybrid = copy.deepcopy(parent)
    for i, part in places:
        own = getattr(hybrid.model.layers[i], part)
        setattr(hybrid.model.layers[i], part, getattr(child.model.layers[i], part))
        hidden.append(states(hybrid, ids))
        setattr(hybrid.model.layers[i], part, own)
    for i in range(layers):
        hybrid.model.layers[i] = child.model.layers[i]
        if i + 1 in (5, 10, 20, layers):
            joint[i + 1] = states(hybrid, ids)
    gram, single, together = torch.zeros(len(places), len(places), dtype=torch.float64), 0.0, dict.fromkeys(joint, 0.0)
    for first in range(0, len(reference), CHUNK):
        part = slice(first, first + CHUNK)
        target = parent.lm_head(reference[part]).log_softmax(-1)
        p = target.exp()
        deltas = torch.stack([parent.lm_head(h[part]).log_softmax(-1) - target for h in hidden])
        single = single - (p * deltas).sum(-1).sum(1).double()
        for depth, h in joint.items():
            together[depth] -= float((p * (parent.lm_head(h[part]).log_softmax(-1) - target)).sum())
        deltas -= (p * deltas).sum(-1, keepdim=True)
        weighted = (deltas * p.sqrt()).flatten(1)
        gram += (weighted @ weighted.T).double()
    single, gram = single / len(reference), gram / len(reference)
    print(f"\n| first layers in int8, {text} | sum of single KLs | half the variances | with covariances | KL |")
    print("|---|---|---|---|---|")
    for depth, kl in together.items():
        part = gram[: 2 * depth, : 2 * depth]
        cells = (single[: 2 * depth].sum(), part.trace() / 2, part.sum() / 2, kl / len(reference))
        print(f"| {depth} | {' | '.join(f'{float(cell):.4f}' for cell in cells)} |")
    scale = gram.diagonal().sqrt()
    cosines = (gram / torch.outer(scale, scale))[~torch.eye(len(gram), dtype=torch.bool)]
    same = torch.tensor([gram[2 * i, 2 * i + 1] / (scale[2 * i] * scale[2 * i + 1]) for i in range(layers)])
    print(
        f"\ncorrelation of two pieces: mean {cosines.mean():.3f}, positive in {(cosines > 0).float().mean():.0%} of "
        f"the pairs; attention and FFN of a layer: mean {same.mean():.3f}",
        flush=True,
    )


@torch.no_grad()
def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--child", default="targets/speed-2.17/uniform-int8/child", help="folder below the results")
    parser.add_argument("--sequences", type=int, default=2, help="of every text")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["control", "additivity"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    parent = load_model(arguments.results / "parent")
    text = {
        split: read_tokens(arguments.results / "corpus" / f"{split}.parquet")[: arguments.sequences]
        for split in ("distill", "score", "heldout")
    }
    if arguments.only != "additivity":
        control(parent, text["distill"], text["heldout"])
    if arguments.only != "control":
        child = load_model(arguments.results / arguments.child)
        for split, name in (("score", "the parent's own text"), ("heldout", "held-out text")):
            additivity(parent, child, text[split], name)


if __name__ == "__main__":
    main()
