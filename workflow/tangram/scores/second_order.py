"""Second-order scores: an estimate of every piece's KL from one backward pass through the parent.

If a piece changes its subblock's output by δ, the KL of the predictions at one position is ½ δᵀ F δ to second order,
where F is the Fisher information of the parent's predictive distribution. F is the expectation of g gᵀ over labels that
are sampled from that distribution, where g is the gradient of the labels' log-likelihood with respect to the output.
The labels of different positions are independent and each gradient has mean zero, so one backward pass serves all
positions at once. The estimate is ½ Σ_w (Σ_t∈w g_t · δ_t)² over windows w of a few tokens, per token and averaged over
samples: it leaves out the products of changes of distant tokens, whose sampling noise is larger than their mean.

δ is the piece's output less the parent's on the parent's own activations. Therefore a piece costs one forward pass of
its subblock, where a replace-1-block score runs all later layers and the LM head.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tangram.activations import Activations
from tangram.blocks.base import CONFIG_NAME, KINDS, Block
from tangram.blocks.registry import get_block
from tangram.library.pieces import Library, State
from tangram.metrics import standard_error_by_sequence
from tangram.models.by_layer import materialize
from tangram.models.families import Shape, decoder_layers
from tangram.models.forward import layer_contexts, logits_of
from tangram.models.replace import replace_subblocks
from tangram.scores.replace_one import Row
from tangram.search.objective import SCREENED

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

CHUNK = 256  # positions whose logits are in memory at a time
WINDOW = 4  # tokens; of 1, 4, 16, 64 and 256 the one with the best rank correlation (docs/evidence/search.md)


def half_layer(
    model: PreTrainedModel, layer: int, kind: str, entries: Mapping[str, Any], tensors: State | None
) -> nn.Module:
    """Return a decoder layer without its other subblock: the residual stream before ``kind`` to that after it.

    Args:
        model: the parent.
        layer: the layer's index.
        kind: ``'attention'`` or ``'ffn'``.
        entries: of the piece's variant in the layer's `per_layer_config`; empty for the parent's subblock.
        tensors: the piece's weights by name in the subblock; None for the parent's.
    """
    (other,) = (CONFIG_NAME[each] for each in KINDS if each != kind)
    overrides = {**entries, "skip": [*entries.get("skip", []), other]}
    parent = materialize(decoder_layers(model)[layer])
    return replace_subblocks(parent, model.config, layer, overrides, {} if tensors is None else {kind: tensors})


def label_gradients(
    model: PreTrainedModel, hidden: torch.Tensor, samples: int, generator: torch.Generator
) -> torch.Tensor:
    """Return gradients of sampled labels' log-likelihoods with respect to the last hidden states.

    Args:
        model: the parent.
        hidden: its last layer's output, ``(batch, length, hidden)``.
        samples: labels per position, drawn independently from the parent's next-token distribution.
        generator: source of the random numbers, on the CPU.

    Returns:
        ``(samples, batch, length, hidden)``, float32.
    """
    parts = []
    for chunk in hidden.flatten(0, 1).split(CHUNK):
        with torch.enable_grad():
            states = chunk.detach().clone().requires_grad_()
            logits = logits_of(model, model.model.norm(states[None])[0]).float()
        probabilities = logits.detach().softmax(-1)
        uniform = torch.rand(len(chunk), samples, generator=generator, dtype=torch.float64).to(hidden.device)
        totals = probabilities.double().cumsum(-1)
        labels = torch.searchsorted(totals, uniform * totals[:, -1:]).clamp_max(logits.shape[-1] - 1)
        gradients = []
        for sample in labels.T:
            residual = -probabilities  # of the log-likelihood with respect to the logits
            residual.scatter_add_(1, sample[:, None], torch.ones_like(residual[:, :1]))
            (gradient,) = torch.autograd.grad(logits, states, residual, retain_graph=True)
            gradients.append(gradient.float())
        parts.append(torch.stack(gradients))
    return torch.cat(parts, 1).unflatten(1, hidden.shape[:2])


class SecondOrder:
    """Scores the pieces of all layers, from the last layer to the first, on the same tokens.

    Args:
        model: the parent, without gradients of its weights.
        activations: the parent's hidden states of the score split.
        samples: sampled labels per position; more reduce the noise of the estimates.
        batch_size: sequences per forward and backward pass.
        seed: seed of the labels.
    """

    def __init__(self, model: PreTrainedModel, activations: Activations, samples: int, batch_size: int, seed: int):
        self._model, self._activations, self._batch_size = model, activations, batch_size
        generator = torch.Generator().manual_seed(seed)
        final = activations.hidden(len(decoder_layers(model))).split(batch_size)
        self._gradients = [label_gradients(model, hidden, samples, generator) for hidden in final]

    def rows(self, variants: Mapping[str, Collection[str]], library: Library) -> Iterator[Row]:
        """Yield one row of `tables.SCORES` for every piece, from the last layer to the first; this works once.

        Args:
            variants: names by kind; those of the head are ignored, as an exact score of the head is cheap.
            library: source of the pieces.
        """
        shape = Shape.of(self._model.config)
        blocks: dict[str, list[Block]] = {
            kind: [get_block(kind, name, shape) for name in variants.get(kind, ())] for kind in KINDS
        }
        for layer in reversed(range(len(decoder_layers(self._model)))):
            inputs = list(self._activations.hidden(layer).split(self._batch_size))
            context = layer_contexts(self._model, inputs[0][:1])[layer]
            halves: dict[str, nn.Module] = {kind: half_layer(self._model, layer, kind, {}, None) for kind in KINDS}
            with torch.no_grad():
                middle = [halves["attention"](hidden, **context) for hidden in inputs]
                outputs = [halves["ffn"](hidden, **context) for hidden in middle]
            for kind, before, after in (("ffn", middle, outputs), ("attention", inputs, middle)):
                for block in blocks[kind]:
                    tensors = library(kind, str(block.variant), layer)
                    piece = half_layer(self._model, layer, kind, block.entries(), tensors)
                    row = estimate(self.products(piece, before, after, context))
                    yield {"layer": layer, "kind": kind, "variant": str(block.variant), **row}
                self._gradients = [
                    _pull_back(halves[kind], hidden, gradients, context)
                    for hidden, gradients in zip(before, self._gradients, strict=True)
                ]

    @torch.no_grad()
    def products(
        self, piece: nn.Module, before: list[torch.Tensor], after: list[torch.Tensor], context: Mapping[str, Any]
    ) -> torch.Tensor:
        """Return the products of every gradient with a piece's change of a token, ``(samples, sequences, length)``."""
        parts = zip(before, after, self._gradients, strict=True)
        changes = [
            torch.einsum("sblh,blh->sbl", gradients, (piece(hidden, **context) - output).float())
            for hidden, output, gradients in parts
        ]
        return torch.cat(changes, 1)


def estimate(products: torch.Tensor) -> Row:
    """Return metric, value, standard error and tokens from `SecondOrder.products`."""
    _, sequences, length = products.shape
    windows = functional.pad(products, (0, -length % WINDOW)).unflatten(-1, (-1, WINDOW)).sum(-1)
    values = windows.square().mean(0) / 2 * (windows.shape[-1] / length)  # whose mean is per token
    mean, error = standard_error_by_sequence(values)
    return {"metric": SCREENED, "value": mean, "standard_error": error, "tokens": sequences * length}


def _pull_back(
    half: nn.Module, hidden: torch.Tensor, gradients: torch.Tensor, context: Mapping[str, Any]
) -> torch.Tensor:
    """Return the gradients with respect to a half layer's input from those with respect to its output."""
    with torch.enable_grad():
        states = hidden.detach().clone().requires_grad_()
        output = half(states, **context)
    pulled = [
        torch.autograd.grad(output, states, gradient.to(output.dtype), retain_graph=True)[0].float()
        for gradient in gradients
    ]
    return torch.stack(pulled)
