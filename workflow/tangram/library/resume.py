"""Resume store of `distill_blocks`: one file per finished layer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tangram.errors import TangramError
from tangram.files import check_tensors, write_tensors
from tangram.library.distill import Piece
from tangram.training.loop import Checkpointing


@dataclass(frozen=True)
class PieceStore:
    """A folder with one file per finished layer, and the state of the layer in training.

    Attributes:
        folder: the folder, outside the rule's declared outputs, which Snakemake clears before a job starts.
        seconds: time between two states of the layer in training.
        identity: fingerprint of all inputs of the job; files with another identity are ignored.
    """

    folder: Path
    seconds: float
    identity: str

    def _file(self, layer: int) -> Path:
        return self.folder / f"{layer}.safetensors"

    def training(self, layer: int) -> Checkpointing:
        """Return where a layer's training saves its state."""
        return Checkpointing(self.folder / f"{layer}-training", self.seconds, f"{self.identity} {layer}")

    def save(self, layer: int, piece: Piece) -> None:
        """Write a finished piece."""
        facts = asdict(replace(piece, weights={}))
        write_tensors(self._file(layer), piece.weights, {"identity": self.identity, "piece": json.dumps(facts)})

    def load(self, layer: int) -> Piece | None:
        """Return a layer's finished piece, or None if this job has not finished it.

        Raises:
            TangramError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self._file(layer)
        if not path.exists():
            return None
        check_tensors(path)
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata()
                if metadata["identity"] != self.identity:
                    return None
                weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is not a dict)
        except (SafetensorError, OSError) as error:
            raise TangramError(f"{path} is damaged ({error}); delete it and run again") from error
        return Piece(**{**json.loads(metadata["piece"]), "weights": weights})
