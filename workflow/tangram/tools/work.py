"""Numbers that the estimates of several stages share: bytes, seconds of a pass, numbers of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tangram.blocks import KINDS, Block, get_block
from tangram.blocks.base import GGUF_PRECISIONS, HEAD
from tangram.config import SPLITS, Config, Split
from tangram.tools.rates import Rates
from tangram.tools.sizes import Sizes, shape_of_parent

FORWARD, TRAINING = 2, 6  # operations per parameter and token: forward pass; forward and backward pass
# Of one stored number, by precision; values of llama.cpp's types are stored as float32.
BYTES = {"bf16": 2, "int8": 1, "fp8": 1, **dict.fromkeys(GGUF_PRECISIONS, 4)}
MASTER_BYTES = 4 * 4  # per trained parameter: weight, gradient and two moments, in float32 for every dtype


def trained_bytes(parameters: float, element: int) -> float:
    """Return the bytes of unsharded parameters in training, for a dtype of ``element`` bytes.

    A pass computes with weights rounded to the run's dtype, and holds them until their gradients are computed.
    """
    return parameters * (MASTER_BYTES + (element if element < 4 else 0))


@dataclass(frozen=True)
class Work:
    """The work of a run on one device.

    Attributes:
        config: the run's config.
        rates: rates of one device.
        sizes: sizes of the parent.
    """

    config: Config
    rates: Rates
    sizes: Sizes

    @property
    def element(self) -> int:
        """Bytes of one number in the run's dtype."""
        return 2 if self.config.dtype == "bfloat16" else 4

    @property
    def model_bytes(self) -> int:
        """Bytes of a whole model."""
        return self.element * self.sizes.total

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the loaded parent in a job of the library: all of it, or two layers, embedding and head."""
        sizes = self.sizes
        return (
            self.element * (2 * sizes.layer + 2 * sizes.embedding) if self.config.parent.by_layer else self.model_bytes
        )

    @property
    def loading(self) -> float:
        """Seconds to start a job and load a whole model."""
        return self.rates.startup + self.model_bytes / self.rates.disk_bytes

    @property
    def stream(self) -> bool:
        """Whether jobs recompute activations instead of reading a cache."""
        return self.config.activations.mode == "stream"

    @property
    def splits(self) -> dict[str, Split]:
        """The corpus by split."""
        return {name: getattr(self.config.corpus, name) for name in SPLITS}

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by split."""
        return {name: split.tokens for name, split in self.splits.items()}

    def length(self, split: str) -> int:
        """Return the tokens per sequence of a split."""
        return self.splits[split].length(self.config.corpus.sequence_length)

    @property
    def shards(self) -> int:
        """Number of jobs per variant."""
        return -(-self.sizes.layers // self.config.library.layers_per_shard)

    @property
    def layers_per_shard(self) -> float:
        """Mean number of layers per shard."""
        return self.sizes.layers / self.shards

    def blocks(self, names: Callable[[str], Iterable[str]]) -> list[Block]:
        """Return the blocks of the variants that a method of the library returns for each kind, the head's included."""
        shape = shape_of_parent(self.config)
        return [get_block(kind, name, shape) for kind in (*KINDS, HEAD) for name in names(kind)]

    def jobs_of(self, kind: str) -> int:
        """Return the number of jobs that distill, quantize or score a variant of a kind."""
        return 1 if kind == HEAD else self.shards

    def layers_of(self, kind: str) -> float:
        """Return the mean number of pieces of such a job, one per layer; the head is one piece."""
        return 1 if kind == HEAD else self.layers_per_shard

    def bytes_of(self, piece: Block) -> float:
        """Return the stored bytes of one piece, in its precision."""
        element = BYTES[piece.variant.precision] if piece.variant.precision else self.element
        return element * self.weights_of(piece)

    def weights_of(self, piece: Block) -> float:
        """Return the weights of one piece."""
        weights: int = getattr(self.sizes, piece.kind)
        return weights * piece.relative_size()

    @property
    def children(self) -> int:
        """Number of children of all targets, baselines included."""
        return sum(len(self.config.solutions(name)) for name in self.config.targets)

    def forward(self, tokens: float, layers: float, head: bool = False) -> float:
        """Return the seconds of a forward pass through some layers, optionally with the LM head."""
        sizes = self.sizes
        return FORWARD * tokens * (layers * sizes.layer + (sizes.head if head else 0)) / self.rates.flops

    @property
    def exact_score(self) -> float:
        """Seconds of the score of one piece: a pass through the layers after it, half of them on average."""
        tokens = self.tokens["score"]
        positions = tokens / self.config.scores.position_stride
        return self.forward(tokens, self.sizes.layers / 2) + self.forward(positions, 0, head=True)

    def timing(self, parameters: float, repeats: float, steps: bool = False) -> float:
        """Return the seconds of timing ``parameters``: prefills, and one decode step or (``steps``) all of them."""
        rates = self.rates
        workloads = [(s, batch) for s in self.config.scenarios.values() for batch in s.batch_sizes]
        prefill = sum(FORWARD * batch * s.prefill * parameters / rates.flops for s, batch in workloads)
        read = self.element * parameters / rates.decode_bytes
        decode = sum(read * (s.generate if steps else 1) for s, _ in workloads)
        return (repeats + 1) * (prefill + decode)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the largest KV cache in timing."""
        scenarios = self.config.scenarios.values()
        longest = max(batch * (s.prefill + s.generate) for s in scenarios for batch in s.batch_sizes)
        return longest * self.sizes.kv_per_token * self.element
