"""The configuration: models, defaults, checks, JSON Schema and documentation, one module per section.

Every rule receives one narrow slice of this tree (a sub-model as JSON), never all of it, so that only affected rules
rerun. An unknown key is an error at parse time that names the nearest valid key.
"""

from tangram.config.base import LARGEST, Filled, Name, PackageFile, RepositoryId, Requirement, Section, Sha256, Unique
from tangram.config.config import Config
from tangram.config.corpus import (
    SPLITS,
    Activations,
    Corpus,
    HubText,
    LocalText,
    PackageText,
    Packing,
    ParentSamples,
    PythonDocs,
    Split,
    TextSource,
)
from tangram.config.costs import Costs, Scenario
from tangram.config.evaluation import Evaluation, Perplexity, Readout, Studies, Task
from tangram.config.finetune import Budget, Finetune, Parallel
from tangram.config.library import BlockDistillation, Library, Precisions, Pruning, Scores, SpanContrast
from tangram.config.parent import GgufParent, HubParent, LocalParent, Parent, Sizes
from tangram.config.parsing import load, parse, slice_of
from tangram.config.targets import (
    BLOCK_INFLUENCE,
    EVOLUTIONARY,
    HALVING,
    LAYERS_DROPPED,
    LIGHT_SEARCHES,
    PACKED,
    SEARCHES,
    STOCK,
    UNIFORM,
    Constraint,
    Evolution,
    Search,
    Selection,
    Target,
    halving_sizes,
    uniform_precision,
    uniform_solution,
)
from tangram.config.trials import TextTrials

__all__ = [
    "BLOCK_INFLUENCE",
    "EVOLUTIONARY",
    "HALVING",
    "LARGEST",
    "LAYERS_DROPPED",
    "LIGHT_SEARCHES",
    "PACKED",
    "SEARCHES",
    "SPLITS",
    "STOCK",
    "UNIFORM",
    "Activations",
    "BlockDistillation",
    "Budget",
    "Config",
    "Constraint",
    "Corpus",
    "Costs",
    "Evaluation",
    "Evolution",
    "Filled",
    "Finetune",
    "GgufParent",
    "HubParent",
    "HubText",
    "Library",
    "LocalParent",
    "LocalText",
    "Name",
    "PackageFile",
    "PackageText",
    "Packing",
    "Parallel",
    "Parent",
    "ParentSamples",
    "Perplexity",
    "Precisions",
    "Pruning",
    "PythonDocs",
    "Readout",
    "RepositoryId",
    "Requirement",
    "Scenario",
    "Scores",
    "Search",
    "Section",
    "Selection",
    "Sha256",
    "Sizes",
    "SpanContrast",
    "Split",
    "Studies",
    "Target",
    "Task",
    "TextSource",
    "TextTrials",
    "Unique",
    "halving_sizes",
    "load",
    "parse",
    "slice_of",
    "uniform_precision",
    "uniform_solution",
]
