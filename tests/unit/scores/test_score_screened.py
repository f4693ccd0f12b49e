"""The command on files: exact rows are those of `score_blocks`, and a later job scores no piece again."""

import json
from pathlib import Path

import pytest
import torch

from tangram.blocks import get_block
from tangram.blocks.calibration import Calibration
from tangram.cli import Pieces, Runtime
from tangram.commands.score_blocks import score_blocks
from tangram.commands.score_screened import score_screened
from tangram.config import Scores, slice_of
from tangram.files import write_tensors
from tangram.library.pieces import tensor_name
from tangram.library.rounding import round_to_nearest
from tangram.models.families import Shape, decoder_layers, subblock
from tangram.models.loading import load_model
from tangram.scores.replace_one import ReplaceOne
from tangram.tables import CALIBRATION, CORPUS, COSTS, SCORES, read_table, write_table

VARIANTS = {"attention": ["gqa-1", "no-op"], "ffn": ["width-0.75", "width-0.5", "no-op"], "head": ["parent@int8"]}
SIZES = {"parent": 8.0, "gqa-1": 6.0, "width-0.75": 6.0, "width-0.5": 4.0, "no-op": 0.0, "parent@int8": 2.0}
SHARDS = "00-01,02-02"
KEYS = ["layer", "kind", "variant"]


def write_library(parent: Path, folder: Path) -> None:
    """Write initial pieces of every layer, in two shards, and a rounded head."""
    model = load_model(parent).requires_grad_(False)
    shape, states = Shape.of(model.config), torch.randn(50, model.config.hidden_size)
    for kind in ("attention", "ffn"):
        for variant in VARIANTS[kind]:
            for shard, layers in (("00-01", (0, 1)), ("02-02", (2,))):
                tensors = {}
                for layer in layers:
                    given = Calibration(inputs=states, outputs=states, weights=torch.ones(50), ridge=1e-3)
                    module = subblock(decoder_layers(model)[layer], kind)
                    weights = get_block(kind, variant, shape).initialize(module, given)
                    tensors |= {tensor_name(layer, kind, name): value.contiguous() for name, value in weights.items()}
                write_tensors(folder / kind / variant / f"{shard}.safetensors", tensors, {})
    weight, scale = round_to_nearest(model.lm_head.weight)
    tensors = {"weight": weight, "scale": scale, "smooth": torch.ones(shape.hidden)}
    tensors = {tensor_name(0, "head", name): value for name, value in tensors.items()}
    write_tensors(folder / "head" / "parent@int8" / "00-00.safetensors", tensors, {})


def write_costs(folder: Path) -> None:
    """Write costs in proportion to `SIZES`, and a calibration of scale 1."""
    pieces = [(kind, name) for kind, names in VARIANTS.items() for name in ("parent", *names)]
    rows = [
        {"layer_class": 0, "kind": kind, "variant": variant, "engine": "torch", "device": "cpu", "scenario": "chat"}
        | {"phase": phase, "batch": 1, "seconds": SIZES[variant] * (kind != "model"), "seconds_spread": 0.0}
        | {"parent_seconds": 8.0, "ratio_error": 0.0}
        | {"parameters": 1, "parameter_bytes": 4, "kv_bytes_per_token": 0}
        for kind, variant in [*pieces, ("model", "parent")]
        for phase in ("prefill", "decode")
    ]
    write_table(rows, COSTS, folder / "costs" / "torch.parquet")
    scales = [
        {"model": "parent", "scenario": "chat", "phase": phase, "batch": 1, "subblock_seconds": 1.0}
        | {"fixed_seconds": 0.1, "measured_seconds": 1.1, "scale": 1.0}
        for phase in ("prefill", "decode")
    ]
    write_table(scales, CALIBRATION, folder / "calibration" / "torch.parquet")


def settings(*shares: float, samples: int = 3) -> str:
    targets = [
        {"constraints": [{"quantity": "latency", "max": share, "scenario": "chat"}], "objective": None}
        for share in shares
    ]
    scenarios = {"chat": {"prefill": 8, "generate": 4, "batch_sizes": [1]}}
    scores = {"batch_size": 2, "position_stride": 2, "label_samples": samples}
    return slice_of({"scores": scores, "library": VARIANTS, "targets": targets, "search": {}, "scenarios": scenarios})


@pytest.fixture
def files(tiny_parent, tmp_path) -> dict:
    parent = tiny_parent()
    write_library(parent, tmp_path / "library")
    write_costs(tmp_path)
    ids = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"sequence_id": i, "source": "test", "input_ids": row, "documents": [], "document_starts": []}
        for i, row in enumerate(ids)
    ]
    write_table(rows, CORPUS, tmp_path / "score.parquet")
    inputs = {"parent": str(parent), "corpus": str(tmp_path / "score.parquet"), "runtime": Runtime()}
    return inputs | {"library": str(tmp_path / "library"), "shards": SHARDS, "tables": str(tmp_path)}


def screened(files, tmp_path, *shares, name="scores", samples=3):
    output = tmp_path / f"{name}.parquet"
    score_screened(
        settings(*shares, samples=samples), output=str(output), cache=str(tmp_path / "cache" / "scores.json"), **files
    )
    return read_table(output, SCORES)


def test_exact_rows_are_those_of_score_blocks(files, tmp_path):
    table = screened(files, tmp_path, 0.7)
    estimates = table[table["metric"] == "screened_kl"]
    assert len(estimates) == 3 * 5
    assert (estimates["value"] >= 0).all()
    exact = table[table["metric"] == "kl"].set_index(KEYS)["value"]
    assert (0, "head", "parent@int8") in exact
    assert 1 < len(exact) < 3 * 5 + 1
    inputs = {name: files[name] for name in ("parent", "corpus", "runtime")}
    for (layer, kind, variant), value in exact.items():
        shard = "00-00" if kind == "head" else "00-01" if layer < 2 else "02-02"
        score_blocks(
            slice_of(Scores(batch_size=2, position_stride=2)),
            Pieces(kind, variant, range(layer, layer + 1)),
            library=str(Path(files["library"]) / kind / variant / f"{shard}.safetensors"),
            output=str(tmp_path / "one.parquet"),
            **inputs,
        )
        alone = read_table(tmp_path / "one.parquet", SCORES)
        assert alone[alone["metric"] == "kl"]["value"].item() == value
        own = table[(table[KEYS] == [layer, kind, variant]).all(axis=1) & (table["metric"] != "screened_kl")]
        assert sorted(own["metric"]) == sorted(alone["metric"])


def test_a_later_job_scores_no_piece_again(files, tmp_path, monkeypatch):
    first = screened(files, tmp_path, 0.7)
    asked, real = [], ReplaceOne.score_piece

    def counted(scorer, layer, block, tensors):
        asked.append((layer, block.kind, str(block.variant)))
        return real(scorer, layer, block, tensors)

    monkeypatch.setattr(ReplaceOne, "score_piece", counted)
    again = screened(files, tmp_path, 0.7, name="again")
    assert asked == []
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "scores.parquet").read_bytes()
    assert again.equals(first)
    both = screened(files, tmp_path, 0.7, 0.4, name="both")  # another target: only its own pieces
    known = set(first[first["metric"] == "kl"][KEYS].itertuples(index=False, name=None))
    assert asked
    assert not known & set(asked)
    assert set(asked) <= set(both[both["metric"] == "kl"][KEYS].itertuples(index=False, name=None)) <= known | {*asked}
    asked.clear()
    screened(files, tmp_path, 0.7, name="more", samples=9)  # other estimates, the same exact scores
    assert not known & set(asked)
    content = json.loads((tmp_path / "cache" / "scores.json").read_text())
    (tmp_path / "cache" / "scores.json").write_text(json.dumps({**content, "identity": "of another text"}))
    asked.clear()
    screened(files, tmp_path, 0.7, name="anew")
    assert set(asked) == known
