"""The modules that enter a study's code hash. The Snakefile imports this file in every job, so it stays light."""

from tangram.blocks.registry import modules_of_variants

WITH_BLOCKS = frozenset({"butterfly", "puzzle", "selection"})


def modules_of_study(name: str) -> list[str]:
    """Return a study's module and, if it computes with blocks (which are imported by name), those of all blocks."""
    return [f"tangram_studies.papers.{name}", *(modules_of_variants() if name in WITH_BLOCKS else ())]
