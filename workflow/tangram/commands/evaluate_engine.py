"""Evaluate an exported child in llama.cpp, beside the parent's files there."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Evaluation, Scenario, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation
    scenarios: dict[str, Scenario]


def evaluate_engine(
    settings: Annotated[str, typer.Option(help="config sections `evaluation` and `scenarios` as JSON")],
    exported: Annotated[str, reads("the child's model.gguf")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("held-out split")],
    output: Annotated[str, writes("EVALUATION table")],
    activations: Annotated[str | None, reads("parent's cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write size, text quality and speed of the child's file and of the parent's files of several types.

    Speed is measured round-robin, at the batch size where the child is fastest. Text quality is that of the engine's
    logits against the parent's in torch.
    """
    runtime.start()
    import tempfile
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.blocks.base import PARENT
    from tangram.corpus.tokens import read_tokens
    from tangram.evaluation.engine import compare_in_engine, measure_in_engine, rivals
    from tangram.evaluation.text import text_rows
    from tangram.export.gguf import write_gguf
    from tangram.export.parts import read_checkpoint
    from tangram.models.families import decoder_layers
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, write_table

    sections = Settings.model_validate_json(settings)
    section = sections.evaluation
    teacher, input_ids = load_model(parent, runtime.dtype, runtime.device), read_tokens(corpus)
    states = open_activations(activations, teacher, input_ids, section.batch_size, runtime.local_copy)
    final = states.hidden(len(decoder_layers(teacher)))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tangram-") as folder:
        source, files = read_checkpoint(parent), {}
        for kind in rivals(source.shape):
            files[f"{PARENT}@{kind}"] = Path(folder, f"{kind}.gguf")
            write_gguf(source, files[f"{PARENT}@{kind}"], floats=kind)
        files["finetuned"] = Path(exported)
        for name, path in files.items():
            size = {"model": name, "task": "file", "metric": "bytes", "value": float(path.stat().st_size), "n": 1}
            metrics = compare_in_engine(path, teacher, final, input_ids, runtime.threads, f"evaluate_engine {name}")
            rows += [{**size, "standard_error": None}, *text_rows(name, "heldout", metrics)]
        for name, scenario in sections.scenarios.items():
            batches = [
                measure_in_engine(files, name, scenario, batch, section.throughput_repeats, runtime.threads)
                for batch in scenario.batch_sizes
            ]
            rows += max(batches, key=_throughput)
    write_table(rows, EVALUATION, output, provenance("tangram.commands.evaluate_engine", settings, runtime.device))


def _throughput(rows: Iterable[dict[str, Any]]) -> float:
    return next(row["value"] for row in rows if row["model"] == "finetuned" and row["metric"] == "throughput")


if __name__ == "__main__":
    run(evaluate_engine)
