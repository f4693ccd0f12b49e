"""Samplers of examples to compare: triplets, pairs, regions of images, spans of token sequences, labeled anchors.

Every sampler draws only from its argument, a `torch.Generator` on the CPU.
"""

from __future__ import annotations

import torch

from tangram.errors import TangramError


def _uniform(limits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one integer from 0 to each limit, exclusive."""
    draws = torch.rand(limits.shape, generator=generator, dtype=torch.float64)
    return (draws * limits).long().minimum(limits - 1)


class LabeledPool:
    """A sampler of labeled examples by class.

    Args:
        labels: integers from 0 to classes - 1, ``(n,)``.

    Raises:
        TangramError: there are fewer than two classes, or a class between has no example.
    """

    def __init__(self, labels: torch.Tensor):
        labels = labels.long().cpu()
        self.labels = labels
        self.counts = torch.bincount(labels)
        self.classes = len(self.counts)
        if self.classes < 2:
            raise TangramError("all labels are of one class; comparisons need at least two")
        if (self.counts == 0).any():
            raise TangramError(f"class {int(self.counts.argmin())} has no labeled example")
        self._order = labels.argsort(stable=True)
        self._starts = self.counts.cumsum(0) - self.counts
        self._rank = torch.empty_like(labels)
        self._rank[self._order] = torch.arange(len(labels)) - self._starts[labels[self._order]]

    def of_class(self, classes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return indices of uniformly drawn examples of ``classes``, in its shape."""
        return self._order[self._starts[classes] + _uniform(self.counts[classes], generator)]

    def another(self, anchors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return for each anchor a different example of its class.

        Raises:
            TangramError: an anchor is the only example of its class.
        """
        classes = self.labels[anchors]
        counts = self.counts[classes]
        if (counts < 2).any():
            raise TangramError(f"class {int(classes[counts < 2][0])} has only one labeled example, and so no pair")
        rank = (self._rank[anchors] + 1 + _uniform(counts - 1, generator)) % counts
        return self._order[self._starts[classes] + rank]

    def foreign(self, anchors: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return for each anchor an example of another class: the class uniformly, then the example."""
        step = 1 + _uniform(torch.full(anchors.shape, self.classes - 1), generator)
        return self.of_class((self.labels[anchors] + step) % self.classes, generator)

    def anchors(self, generator: torch.Generator) -> torch.Tensor:
        """Return one example of every class, in the order of classes, ``(classes,)``."""
        return self.of_class(torch.arange(self.classes), generator)


def sample_triplets(
    pool: LabeledPool, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices of anchors, positives and negatives, each ``(count,)`` (arXiv 1412.6622, section 3).

    Classes are drawn uniformly, then images; a positive is never its anchor.
    """
    anchors = pool.of_class(_uniform(torch.full((count,), pool.classes), generator), generator)
    return anchors, pool.another(anchors, generator), pool.foreign(anchors, generator)


def sample_pairs(
    pool: LabeledPool, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices of both sides of pairs, and whether a pair is of one class (half are), each ``(count,)``."""
    left = pool.of_class(_uniform(torch.full((count,), pool.classes), generator), generator)
    same = torch.arange(count) % 2 == 0
    return left, torch.where(same, pool.another(left, generator), pool.foreign(left, generator)), same


def sample_regions(maps: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return one square region of each image or feature map, uniformly placed, ``(n, channels, size, size)``.

    The text of the paper (arXiv 1610.00243) takes patches of the image; its algorithm 1 takes windows of the feature
    map. This function serves both.

    Args:
        maps: ``(n, channels, height, width)``.
        size: side of a region.
        generator: a generator on the CPU.

    Raises:
        ValueError: the region does not fit.
    """
    n, channels, height, width = maps.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"a region of {size} does not fit into {height} by {width}")
    tops, lefts = (_uniform(torch.full((n,), side - size + 1), generator) for side in (height, width))
    steps = torch.arange(size)
    rows = (tops[:, None] + steps)[:, None, :, None].to(maps.device)
    columns = (lefts[:, None] + steps)[:, None, None, :].to(maps.device)
    image = torch.arange(n, device=maps.device)[:, None, None, None]
    return maps[image, torch.arange(channels, device=maps.device)[None, :, None, None], rows, columns]


def shift_and_mirror(images: torch.Tensor, shift: int, mirror: bool, generator: torch.Generator) -> torch.Tensor:
    """Return images shifted by up to ``shift`` pixels on both axes, half of them mirrored: the papers' augmentation."""
    padded = torch.nn.functional.pad(images, (shift,) * 4)
    side = images.shape[-1]
    shifted = sample_regions(padded, side, generator) if shift else images
    if not mirror:
        return shifted
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.to(images.device)[:, None, None, None], shifted.flip(-1), shifted)


def sample_spans(
    sequences: int, length: int, per_sequence: int, shortest: int, longest: int, generator: torch.Generator
) -> torch.Tensor:
    """Return spans of token sequences as rows (sequence, first token, token after the last), ``(spans, 3)``.

    No span contains the first token of a sequence: its hidden states are outliers that would dominate every mean.

    Args:
        sequences: number of sequences.
        length: tokens of each sequence.
        per_sequence: spans of each sequence.
        shortest: minimum span length in tokens.
        longest: maximum span length in tokens; at most that of the sequence without its first token.
        generator: a generator on the CPU.

    Raises:
        TangramError: the shortest span does not fit.
    """
    longest = min(longest, length - 1)
    if not 1 <= shortest <= longest:
        raise TangramError(f"spans of {shortest} tokens do not fit into sequences of {length} without the first")
    count = sequences * per_sequence
    sizes = shortest + _uniform(torch.full((count,), longest - shortest + 1), generator)
    starts = 1 + _uniform(length - sizes, generator)
    return torch.stack([torch.arange(sequences).repeat_interleave(per_sequence), starts, starts + sizes], dim=1)
