"""The passes that are timed in llama.cpp: prefill and decode steps, prepared before they are timed."""

from __future__ import annotations

from collections.abc import Sequence

from tangram.config import Scenario
from tangram.costs.measurement import decode_window
from tangram.llama_cpp import Context, Model


class Pass:
    """A prefill, or some decode steps; a call runs it again from the same state of the KV cache.

    Args:
        model: a loaded model.
        sequences: batch size.
        past: tokens of each sequence in the KV cache before the pass.
        sizes: tokens of each sequence in every step: ``[prompt]`` for a prefill, ``[1, 1, ...]`` for decode.
        threads: threads.

    Raises:
        TangramError: llama.cpp refuses the model, or fails.
    """

    def __init__(self, model: Model, sequences: int, past: int, sizes: Sequence[int], threads: int):
        self.past, self.steps = past, len(sizes)
        self._context = Context(model, past + sum(sizes), sequences, threads)

        def tokens(first: int, count: int) -> list[list[int]]:
            return [[(7919 * (first + i) + 31 * s) % model.vocabulary for i in range(count)] for s in range(sequences)]

        if past:
            self._context.decode(tokens(0, past), 0, logits=False)
        firsts = [past + sum(sizes[:step]) for step in range(len(sizes))]
        self._batches = [
            self._context.batch(tokens(first, count), first, logits=False)
            for first, count in zip(firsts, sizes, strict=True)
        ]

    @classmethod
    def prefill(cls, model: Model, scenario: Scenario, batch: int, threads: int) -> Pass:
        """Prepare the prefill of a scenario."""
        return cls(model, batch, 0, [scenario.prefill], threads)

    @classmethod
    def decode(cls, model: Model, scenario: Scenario, batch: int, threads: int, cached: bool = True) -> Pass:
        """Prepare a few decode steps at the mean length of a scenario's KV cache.

        Args:
            model: a loaded model.
            scenario: the scenario.
            batch: sequences.
            threads: threads.
            cached: fill the cache; False for models whose time does not depend on it.
        """
        past, steps = decode_window(scenario)
        return cls(model, batch, past if cached else 0, [1] * steps, threads)

    def __call__(self) -> None:
        """Run the pass, and remove its tokens from the cache."""
        for batch in self._batches:
            self._context.run(batch)
        self._context.truncate(self.past)

    def close(self) -> None:
        """Free the memory."""
        for batch in self._batches:
            self._context.free(batch)
        self._context.close()
