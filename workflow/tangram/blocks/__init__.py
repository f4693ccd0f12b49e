"""The search space: what may stand in for a layer's attention or FFN. One family of variants is one file here.

A family is a subclass of `Block` that says all that is known of its variants: their names (`family`, `form`, `sizes`),
which subblocks they replace (`kinds`), how their shape differs from the parent's (`overrides`, in transformers'
`per_layer_config` terms), how their weights begin (`initialize`, without training), how large they are
(`relative_size`), and how the report shows them (`label`, `hue`, `severity`). Everything else (the config's checks,
training, scores, costs, assembly, the planner, the report) asks the class, and no other module takes a name apart::

    @register
    class HalfRank(Block):
        family, kinds, form = "half", ("ffn",), "half-K"
        sizes, label, hue = int, "h{size}", ("#d9b3a0", "#a8502f")

        def overrides(self): ...
        def initialize(self, parent, calibration): ...
        def relative_size(self): ...

A family of this package is imported by its name in `registry.FAMILIES`; another package names the modules of its
families under the entry point group ``tangram.blocks``. Modules here import torch inside functions only, since the
config is checked with these classes whenever Snakemake starts.
"""

from tangram.blocks.base import KINDS, NO_OP, PARENT, REGISTRY, Block, Kind, Variant, register
from tangram.blocks.registry import block_class, get_block, registry

__all__ = [
    "KINDS", "NO_OP", "PARENT", "REGISTRY", "Block", "Kind", "Variant", "block_class", "get_block", "register",
    "registry",
]  # fmt: skip
