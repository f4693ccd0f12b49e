"""The parent's hidden states: cached on disk and memory-mapped, or recomputed layer by layer (streamed).

Index ``l`` of the layer axis is the input of layer ``l``; the last index is the output of the last layer, before the
final norm. Both modes run the same batches through the same layers, so they give identical numbers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from tqdm import tqdm

from tangram.errors import TangramError
from tangram.files import atomic_path
from tangram.models.families import decoder_layers
from tangram.models.forward import embed, layer_contexts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def capture(model: PreTrainedModel, input_ids: torch.Tensor, batch_size: int, path: str | Path, label: str) -> None:
    """Write the hidden states of ``input_ids`` ``(sequences, length)`` to ``path`` as float32 ``.npy``.

    Shape on disk: ``(layers + 1, sequences, length, hidden)``.

    Raises:
        TangramError: there is not enough free space, or an activation is not finite.
    """
    sequences, length = input_ids.shape
    layers = decoder_layers(model)
    shape = (len(layers) + 1, sequences, length, model.config.hidden_size)
    needed = 4 * int(np.prod(shape))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(Path(path).parent).free
    if needed > free:
        raise TangramError(
            f"the activation cache {path} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free space, use fewer tokens, or set activations.mode to 'stream'"
        )
    with atomic_path(path) as temporary, torch.inference_mode():
        store = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        batches = [slice(start, start + batch_size) for start in range(0, sequences, batch_size)]
        for batch in batches:
            store[0, batch] = embed(model, input_ids[batch].to(model.device)).float().cpu().numpy()
        # All batches layer by layer, so that one layer's weights are in memory at a time.
        for index, layer in enumerate(tqdm(layers, desc=label, mininterval=5)):
            for batch in batches:
                hidden = torch.from_numpy(store[index, batch]).to(model.device, model.dtype)
                hidden = layer(hidden, **layer_contexts(model, hidden)[index])
                store[index + 1, batch] = hidden.float().cpu().numpy()
        for batch in batches:
            if not np.isfinite(store[-1, batch]).all():
                raise TangramError(f"the parent's activations are not finite in sequences {batch.start}-{batch.stop}")
        store.flush()


class Activations(Protocol):
    """The hidden states of one split."""

    def hidden(self, layer: int) -> torch.Tensor:
        """Return the input of ``layer``, ``(sequences, length, hidden)``; index ``layers`` gives the last output."""
        ...

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the inputs of some layers, in rising order, for some sequences (indices)."""
        ...


class CachedActivations:
    """Hidden states memory-mapped from disk."""

    def __init__(self, path: str | Path, model: PreTrainedModel, input_ids: torch.Tensor):
        try:
            self._store = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise TangramError(f"{path} cannot be read ({error}); delete it and run again") from error
        expected = (len(decoder_layers(model)) + 1, *input_ids.shape, model.config.hidden_size)
        if self._store.shape != expected:
            raise TangramError(f"{path} has shape {self._store.shape}, expected {expected}; delete it and run again")
        self._dtype, self._device = model.dtype, model.device

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input as a copy in memory."""
        return torch.from_numpy(np.array(self._store[layer])).to(self._device, self._dtype)

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Return copies of some layers' inputs for some sequences; only these are read from disk."""
        rows = sequences.numpy()
        return [torch.from_numpy(self._store[layer][rows]).to(self._device, self._dtype) for layer in layers]


class StreamedActivations:
    """Hidden states recomputed from the tokens; calls in rising order of layers run each layer once."""

    def __init__(self, model: PreTrainedModel, input_ids: torch.Tensor, batch_size: int):
        self._model, self._input_ids, self._batch_size = model, input_ids, batch_size
        self._layer = -1
        self._hidden = torch.empty(0)

    def hidden(self, layer: int) -> torch.Tensor:
        """Return one layer's input, computed from the previous call's layer if that is not above."""
        with torch.inference_mode():
            if self._layer < 0 or layer < self._layer:
                self._hidden = embed(self._model, self._input_ids.to(self._model.device))
                self._layer = 0
            while self._layer < layer:
                module = decoder_layers(self._model)[self._layer]
                batches = self._hidden.split(self._batch_size)
                contexts = [layer_contexts(self._model, batch)[self._layer] for batch in batches]
                outputs = [module(batch, **context) for batch, context in zip(batches, contexts, strict=True)]
                self._hidden = torch.cat(outputs)
                self._layer += 1
        return self._hidden.clone()

    def of_sequences(self, sequences: torch.Tensor, layers: Sequence[int]) -> list[torch.Tensor]:
        """Run the parent on some sequences and store only the inputs of ``layers``."""
        stored_layers, inputs = set(layers), []
        with torch.no_grad():
            hidden = embed(self._model, self._input_ids[sequences].to(self._model.device))
            contexts = layer_contexts(self._model, hidden)
            for index, layer in enumerate([*decoder_layers(self._model), None]):
                if index in stored_layers:
                    inputs.append(hidden)
                if layer is not None:
                    hidden = layer(hidden, **contexts[index])
        return inputs


def open_activations(
    path: str | Path | None, model: PreTrainedModel, input_ids: torch.Tensor, batch_size: int, local_copy: bool = False
) -> Activations:
    """Open the cache at ``path``, or return streamed activations if there is none.

    Args:
        path: the cache's file, or None.
        model: the parent.
        input_ids: ``(sequences, length)``.
        batch_size: sequences per forward pass of streamed activations.
        local_copy: copy the cache sequentially to this job's temporary folder, and map the copy. The copy is unlinked
            at once, so the system frees it when the process ends, even after a kill.

    Raises:
        TangramError: the cache is damaged, or there is no space for its copy.
    """
    if path is None:
        return StreamedActivations(model, input_ids, batch_size)
    if local_copy:
        return CachedActivations(_nameless_copy(path), model, input_ids)
    return CachedActivations(path, model, input_ids)


def _nameless_copy(path: str | Path) -> str:
    """Copy a file to `$TMPDIR` and unlink the copy; return a path with which this process can still open it."""
    try:
        with open(path, "rb") as source, tempfile.NamedTemporaryFile(prefix="tangram-", delete=True) as copy:
            shutil.copyfileobj(source, copy, 1 << 24)
            copy.flush()
            return f"/proc/self/fd/{os.dup(copy.fileno())}"
    except OSError as error:
        raise TangramError(
            f"cannot copy {path} to {tempfile.gettempdir()}: {error.strerror}; "
            "make space there, point tmpdir elsewhere, or set activations.local_copy to false"
        ) from error
