"""The schemas of all tables, and the functions that write and read them.

Tables are in long form: one row per measurement, never one column per variant. Names, types and nullability are checked
on write, names and types on read. The parquet metadata holds units, provenance and a checksum of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tangram.errors import TangramError
from tangram.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def _field(name: str, kind: pa.DataType, unit: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_LAYER = _field("layer", _INT, "index; 0 for the head")
_PIECE = [
    _LAYER,
    _field("kind", _TEXT, "'attention', 'ffn' or 'head', or 'block' for attention and FFN together"),
    _field("variant", _TEXT, "name; of a 'block', the pair, such as 'gqa-1+width-0.5'"),
]

CORPUS = pa.schema(
    [
        _field("sequence_id", _INT, "index"),
        _field("source", _TEXT, "name"),
        _field("input_ids", pa.list_(pa.int32()), "tokens"),
        _field("documents", pa.list_(_TEXT), "sha256 of each document in the sequence"),
        _field("document_starts", pa.list_(pa.int32()), "position of each document's first token"),
    ]
)
LIBRARY = pa.schema(
    [
        *_PIECE,
        _field("parameters", _INT, "parameters"),
        _field("bld_loss_before", _REAL, "normalized MSE, held out"),
        _field("bld_loss_after", _REAL, "normalized MSE, held out", nullable=True),
        _field("kept", _TEXT, "'initial' or 'trained'; of a quantized piece, its rounding"),
        _field("tokens", _INT, "tokens"),
        _field("seconds", _REAL, "seconds"),
    ]
)
CURVES = pa.schema(
    [
        _field("series", _TEXT, "what was trained, e.g. 'ffn width-0.5 layer 7'"),
        _field("step", _INT, "optimizer steps"),
        _field("tokens", _INT, "tokens seen"),
        _field("metric", _TEXT, "name"),
        _field("value", _REAL, "as the metric says"),
    ]
)
VALIDATION_KL = "validation_kl"  # metric of a finetuning's CURVES: KL on text that is not trained on, nats per token
SCORES = pa.schema(
    [
        *_PIECE,
        _field(
            "metric",
            _TEXT,
            "'kl', its estimate 'screened_kl', 'lm_loss_increase' (nats per token), 'cosine_distance' (of the last "
            "hidden states), 'agreement' (fraction), or, with the parent's minus the child's answers to questions, "
            "'accuracy' (fraction) or 'margin' (log-odds of the right choice, nats)",
        ),
        _field("value", _REAL, "as the metric says"),
        _field("standard_error", _REAL, "as the metric says, over sequences"),
        _field("tokens", _INT, "tokens"),
    ]
)
COSTS = pa.schema(
    [
        _field("layer_class", _INT, "first layer of the class of equal shapes"),
        _field("kind", _TEXT, "'attention', 'ffn', 'head', or 'model' for embedding and final norm"),
        _field("variant", _TEXT, "name"),
        _field("engine", _TEXT, "name"),
        _field("device", _TEXT, "name"),
        _field("scenario", _TEXT, "name"),
        _field("phase", _TEXT, "'prefill' (the whole prompt) or 'decode' (one step)"),
        _field("batch", _INT, "sequences"),
        _field("seconds", _REAL, "seconds, median"),
        _field("seconds_spread", _REAL, "seconds, interquartile range"),
        _field("parent_seconds", _REAL, "seconds of the parent's own subblock, interleaved in the same job, median"),
        _field("ratio_error", _REAL, "standard error of seconds / parent_seconds"),
        _field("parameters", _INT, "stored weights and scales, whatever their precision"),
        _field("parameter_bytes", _INT, "bytes"),
        _field("kv_bytes_per_token", _INT, "bytes per token and sequence"),
    ]
)
CALIBRATION = pa.schema(
    [
        _field("model", _TEXT, "name of the whole model; 'stock parent' is run by stock transformers"),
        _field("scenario", _TEXT, "name"),
        _field("phase", _TEXT, "'prefill' or 'decode'"),
        _field("batch", _INT, "sequences"),
        _field("subblock_seconds", _REAL, "seconds, sum over the model's subblocks and LM head from the cost table"),
        _field("fixed_seconds", _REAL, "seconds, embedding and final norm"),
        _field("measured_seconds", _REAL, "seconds, the whole model"),
        _field("scale", _REAL, "fitted: measured = scale * (subblocks + fixed)"),
    ]
)
SOLUTIONS = pa.schema(
    [
        _field("solution", _TEXT, "'0' is the proven best"),
        _LAYER,
        _field("kind", _TEXT, "'attention', 'ffn', 'block' for both, or 'head'"),
        _field("variant", _TEXT, "name"),
        _field("score", _REAL, "objective's contribution"),
    ]
)
EVALUATION = pa.schema(
    [
        _field("model", _TEXT, "'parent', 'packed parent' (throughput), 'child' (before finetuning) or 'finetuned'"),
        _field("task", _TEXT, "'heldout', an lm-eval task, a scenario, or a readout and its labels per class"),
        _field("metric", _TEXT, "name"),
        _field("value", _REAL, "as the metric says"),
        _field("standard_error", _REAL, "as the metric says", nullable=True),
        _field("n", _INT, "tokens, questions, repetitions or draws"),
    ]
)
SPEEDS = pa.schema(
    [
        _field("target", _TEXT, "name; empty for the parent"),
        _field("solution", _TEXT, "name; empty for the parent"),
        *EVALUATION,
    ]
)
SAMPLES = pa.schema(
    [
        _field("model", _TEXT, "'parent', 'child' (before finetuning) or 'finetuned'"),
        _field("task", _TEXT, "'heldout' or an lm-eval task"),
        _field("sample", _INT, "index of the sequence or question, the same for all models"),
        _field("metric", _TEXT, "name"),
        _field("value", _REAL, "as the metric says; of a sequence, the mean over its tokens"),
    ]
)
LONG_CONTEXT = pa.schema(
    [
        _field("model", _TEXT, "'parent', 'child' (before finetuning) or 'finetuned'"),
        _field("task", _TEXT, "'needle' or 'variable-tracking'"),
        _field("length", _INT, "tokens of the question with its answer, at most"),
        _field("sample", _INT, "index of the question, the same for all models"),
        _field("depth", _REAL, "place of the first statement that the answer needs, as a share of the text"),
        _field(
            "metric",
            _TEXT,
            "'acc' (1 if the likeliest choice is right), 'chance' of it, or 'margin': log-likelihood of the right "
            "choice minus the likeliest wrong one's, nats",
        ),
        _field("value", _REAL, "as the metric says"),
    ]
)
TRIALS = pa.schema(
    [
        _field("candidate", _TEXT, "name of the text that the child was trained on"),
        _field(
            "heldout", _TEXT, "'heldout', the run's split, the same for all candidates, or 'own' text of the source"
        ),
        _field("draws", _INT, "draws of training text"),
        _field("sequences", _INT, "held-out sequences"),
        _field("kl_before", _REAL, "nats per token, before training"),
        _field("kl", _REAL, "nats per token, after training, mean over draws"),
        _field("standard_error", _REAL, "of `kl`, nats per token, over sequences and draws"),
        _field("change", _REAL, "kl - kl_before, nats per token, paired by sequence"),
        _field("change_low", _REAL, "lower end of its 95 % interval"),
        _field("change_high", _REAL, "upper end of its 95 % interval"),
        _field("difference", _REAL, "kl minus the best candidate's, nats per token, paired by sequence", nullable=True),
        _field("difference_low", _REAL, "lower end of its interval; all hold together at 95 %", nullable=True),
        _field("difference_high", _REAL, "upper end of its interval; all hold together at 95 %", nullable=True),
        _field("verdict", _TEXT, "'best', 'tie' with the best, or 'worse'", nullable=True),
    ]
)
SELECTION = pa.schema(
    [
        _field("candidate", _INT, "number of the solution"),
        _field("prompt", _INT, "index, in the order of the score split; of whole sequences for 'finetuned'"),
        _field("metric", _TEXT, "'kl', 'lm_loss', 'judge', or 'finetuned': KL after training; nats per token"),
        _field("value", _REAL, "as the metric says, mean over the prompt's tokens, or the continuation's"),
        _field("tokens", _INT, "of the prompt; for a judge also of the continuation, written and read"),
    ]
)
CLAIMS = pa.schema(
    [
        _field("claim", _TEXT, "short name, unique in its study"),
        _field("statement", _TEXT, "what the paper says, restated"),
        _field("where", _TEXT, "section, theorem, table or figure of the paper"),
        _field("paper_value", _TEXT, "the paper's own figure, or '-'"),
        _field("measured", _TEXT, "what was found here, in words and figures"),
        _field("estimate", _REAL, "the quantity that decides, in `unit`", nullable=True),
        _field("low", _REAL, "lower end of its 95 % interval, in `unit`", nullable=True),
        _field("high", _REAL, "upper end of its 95 % interval, in `unit`", nullable=True),
        _field("unit", _TEXT, "of the estimate"),
        _field("seeds", _INT, "independent repetitions; 1 for an identity"),
        _field("verdict", _TEXT, "'supported', 'refuted' or 'inconclusive'"),
        _field("note", _TEXT, "scale, deviations, constants of our own derivation"),
    ]
)
MEASUREMENTS = pa.schema(
    [
        _field("experiment", _TEXT, "name"),
        _field("arm", _TEXT, "what was compared"),
        _field("x", _REAL, "the experiment's variable, such as rounds, rank or labels", nullable=True),
        _field("seed", _INT, "repetition"),
        _field("metric", _TEXT, "name, with its unit where it has one"),
        _field("value", _REAL, "as the metric says"),
    ]
)


def _checksum(table: pa.Table) -> str:
    for i, field in enumerate(table.schema):
        if table.column(i).null_count:  # rebuild the column, because the bytes under a null are undefined
            table = table.set_column(i, field, pa.array(table.column(i).to_pylist(), field.type))
    plain = table.cast(pa.schema([field.remove_metadata() for field in table.schema])).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def write_table(
    rows: pd.DataFrame | list[dict], schema: pa.Schema, path: str | Path, provenance: Mapping[str, str] | None = None
) -> None:
    """Write ``rows`` atomically as parquet after checking them against ``schema``.

    Raises:
        TangramError: a column is missing, of the wrong type, or null where it must not be.
    """
    try:
        if isinstance(rows, list):
            table = pa.Table.from_pylist(rows, schema=schema)
        else:
            table = pa.Table.from_pandas(rows[schema.names], schema=schema, preserve_index=False)
        table.validate(full=True)
    except (KeyError, pa.ArrowException) as error:
        raise TangramError(f"{path}: rows do not fit the table's schema: {error}") from error
    table = table.replace_schema_metadata(None)
    for name in schema.names:
        if not schema.field(name).nullable and table[name].null_count:
            raise TangramError(f"{path}: column '{name}' holds nulls, but the schema forbids them")
    metadata = {**(provenance or {}), "tangram.sha256": _checksum(table)}
    with atomic_path(path) as temporary:
        pq.write_table(table.cast(schema).replace_schema_metadata(metadata), temporary, compression="zstd")


def read_arrow(path: str | Path, schema: pa.Schema) -> pa.Table:
    """Read a table after checking its schema and the checksum in its metadata.

    Raises:
        TangramError: the file is missing, damaged, or of another schema; the message names the remedy.
    """
    remedy = "delete it and run again: only this file and what depends on it is rebuilt"
    try:
        table = pq.read_table(path)
        names, types = table.schema.names, table.schema.types
    except FileNotFoundError as error:
        raise TangramError(f"{path} does not exist; run the pipeline to build it") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise TangramError(f"{path} is damaged ({reason}); {remedy}") from error
    if names != schema.names or types != schema.types:
        raise TangramError(f"{path} has columns {names}, expected {schema.names}; {remedy}")
    recorded = (table.schema.metadata or {}).get(b"tangram.sha256", b"")
    plain = table.replace_schema_metadata(None)
    if recorded != _checksum(plain.cast(pa.schema([f.remove_metadata() for f in schema]))).encode():
        raise TangramError(f"{path} does not match its own checksum; {remedy}")
    return table


def read_table(path: str | Path, schema: pa.Schema) -> pd.DataFrame:
    """Read a table as a pandas frame, with the checks of `read_arrow`."""
    return read_arrow(path, schema).to_pandas()
