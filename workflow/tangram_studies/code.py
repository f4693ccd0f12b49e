"""What code a study computes with, for its code hash. Light: the Snakefile imports it in every job."""

from tangram.blocks.registry import modules_of_variants

WITH_BLOCKS = frozenset({"butterfly", "selection"})


def modules_of_study(name: str) -> list[str]:
    """Return a study's own module and, if it computes with blocks, which are imported by name, those of all blocks."""
    return [f"tangram_studies.papers.{name}", *(modules_of_variants() if name in WITH_BLOCKS else ())]
