"""Print the pairs of variants that a run's solutions use, for `library.coupled`: `tangram pairs --target fast`.

Puzzle's second stage (arXiv 2411.19146, section 3): after a run with separately trained pieces, only the variants that
its diverse solutions use are trained in pairs. The same run then goes on with the pairs; all its other jobs stay.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from tangram.blocks.architecture import Architecture, LayerChoice
from tangram.blocks.base import NO_OP, PARENT, Variant
from tangram.cli import run
from tangram.config import Config, load
from tangram.errors import TangramError, nearest
from tangram.search.solutions import load_solutions


def solutions_of(config: Config, target: str | None) -> list[Architecture]:
    """Return the solver's solutions of a target, or of all targets, under `results/`.

    Raises:
        TangramError: the config has no such target, or it is not solved yet.
    """
    if target is not None and target not in config.targets:
        raise TangramError(f"--target: '{target}' is not a target{nearest(target, list(config.targets))}")
    architectures: list[Architecture] = []
    for name in config.targets if target is None else [target]:
        path = Path("results", config.run, "targets", name, "solutions", "mip.json")
        if not path.exists():
            raise TangramError(f"{path} does not exist; run the pipeline, as far as `snakemake -c2 {path}`")
        architectures += load_solutions(path).values()
    return architectures


def pairs_of(architectures: Iterable[Architecture], chosen: bool = False) -> Iterator[LayerChoice]:
    """Yield the pairs of the variants that architectures use, without precisions, each once and in order of names.

    Args:
        architectures: the solutions.
        chosen: only the pairs that some layer has, instead of every pair of a used attention and a used FFN variant.
    """
    used = {
        (str(Variant.parse(choice.attention).source), str(Variant.parse(choice.ffn).source))
        for architecture in architectures
        for choice in architecture.layers
    }
    pairs = used if chosen else set(itertools.product({a for a, _ in used}, {f for _, f in used}))
    for attention, ffn in sorted(pairs):
        if PARENT not in (attention, ffn) and {attention, ffn} != {NO_OP}:
            yield LayerChoice(attention, ffn, coupled=True)


def pairs(
    config: Annotated[Path, typer.Option(help="config file")] = Path("config/config.yaml"),
    target: Annotated[str | None, typer.Option(help="target whose solutions count; all targets if omitted")] = None,
    chosen: Annotated[bool, typer.Option(help="only pairs that a layer of a solution has")] = False,
) -> None:
    """Print `library.coupled` for the variants that the solutions of a finished run use: the second of two stages."""
    settings = load(config)
    architectures = solutions_of(settings, target)
    found = list(pairs_of(architectures, chosen))
    trained = [all(getattr(pair, k) in settings.library.plain(k) for k in ("attention", "ffn")) for pair in found]
    names = [pair.pair for pair, possible in zip(found, trained, strict=True) if possible]
    if not names:
        raise TangramError(
            f"no layer of {len(architectures)} solutions gives a pair of two variants without precision that the "
            "library lists; ask for a stricter target, or list more variants"
        )
    print("library:\n  coupled:\n    pairs:")
    print("\n".join(f"      - {name}" for name in names))
    left_out = len(found) - len(names)
    print(
        f"{len(names)} pairs, each trained in {settings.parent.num_layers} layers, from {len(architectures)} solutions"
        + f"; {left_out} pairs left out, as the library lists a variant only with a precision" * bool(left_out),
        file=sys.stderr,
    )


if __name__ == "__main__":
    run(pairs)
