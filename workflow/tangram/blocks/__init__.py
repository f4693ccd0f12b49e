"""The search space: the alternatives to a layer's attention or FFN. Each file defines one family of variants.

A family is a subclass of `Block` and the only definition of its variants: their names (`family`, `form`, `sizes`), the
subblocks that they replace (`kinds`), how their shape differs from the parent's (`overrides`, in transformers'
`per_layer_config` terms), their initial weights (`initialize`, without training), their size (`relative_size`), and how
the report shows them (`label`, `hue`, `severity`). The config's checks, training, scores, costs, assembly, the planner
and the report use the class; no other module parses a variant's name::

    @register
    class HalfRank(Block):
        family, kinds, form = "half", ("ffn",), "half-K"
        sizes, label, hue = int, "h{size}", ("#d9b3a0", "#a8502f")

        def overrides(self): ...
        def initialize(self, parent, calibration): ...
        def relative_size(self): ...

`registry.FAMILIES` lists the modules of this package's families; another package registers the modules of its families
under the entry point group ``tangram.blocks``. Modules here import torch inside functions only, since these classes
check the config whenever Snakemake starts.
"""

from tangram.blocks.base import HEAD, KINDS, NO_OP, PARENT, REGISTRY, Block, Kind, Variant, register
from tangram.blocks.registry import block_class, get_block, registry

__all__ = [
    "HEAD", "KINDS", "NO_OP", "PARENT", "REGISTRY", "Block", "Kind", "Variant", "block_class", "get_block", "register",
    "registry",
]  # fmt: skip
