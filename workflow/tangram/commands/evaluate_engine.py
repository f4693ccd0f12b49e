"""Evaluate an exported child in its engine, or the parent's files in llama.cpp, on held-out text."""

from typing import Annotated, Any

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_each, reads_model, run, writes
from tangram.config import Evaluation, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation


def evaluate_engine(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    files: Annotated[
        list[str], reads_each("a child's in {target}/{solution}/export, or the parent's in parent/{type}")
    ],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("held-out split")],
    output: Annotated[str, writes("EVALUATION table")],
    activations: Annotated[str | None, reads("parent's cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write size and text quality of files: the engine's own logits against those of the parent in torch."""
    runtime.start()
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.corpus.tokens import read_tokens
    from tangram.evaluation.engine import compare_in_engine, name_of
    from tangram.evaluation.text import text_rows
    from tangram.evaluation.vllm_text import compare_in_vllm
    from tangram.models.families import decoder_layers
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, write_table

    section = Settings.model_validate_json(settings).evaluation
    teacher, input_ids = load_model(parent, runtime.dtype, runtime.device), read_tokens(corpus)
    states = open_activations(activations, teacher, input_ids, section.batch_size, runtime.local_copy)
    final = states.hidden(len(decoder_layers(teacher)))
    rows: list[dict[str, Any]] = []
    for path in files:
        *_, name = name_of(path)
        size = {"model": name, "task": "file", "metric": "bytes", "value": float(Path(path).stat().st_size), "n": 1}
        if Path(path).suffix == ".gguf":
            metrics = compare_in_engine(path, teacher, final, input_ids, runtime.threads, f"evaluate_engine {name}")
        else:
            metrics = compare_in_vllm(Path(path).parent, teacher, final, input_ids, runtime.dtype)
        rows += [{**size, "standard_error": None}, *text_rows(name, "heldout", metrics)]
    write_table(rows, EVALUATION, output, provenance("tangram.commands.evaluate_engine", settings, runtime.device))


if __name__ == "__main__":
    run(evaluate_engine)
