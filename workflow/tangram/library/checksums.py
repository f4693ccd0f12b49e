"""Checksums of the pieces in an architecture: a child is rebuilt if one of them changes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable

import torch

from tangram.blocks.architecture import Architecture
from tangram.library.pieces import Library, State


def piece_checksums(architectures: Iterable[Architecture], library: Library) -> list[dict[str, str]]:
    """Return one mapping per architecture: the SHA-256 of each piece, by layer, kind and variant or coupled pair."""

    @functools.cache  # architectures share pieces
    def checksum(kind: str, variant: str, layer: int) -> str:
        return checksum_of(library(kind, variant, layer))

    return [
        {f"{layer:03} {kind} {name}": checksum(kind, name, layer) for layer, kind, _, name in architecture.stored()}
        for architecture in architectures
    ]


def checksum_of(piece: State) -> str:
    """Return the SHA-256 of a piece's weights, without its file's metadata."""
    digest = hashlib.sha256()
    for name, tensor in sorted(piece.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
