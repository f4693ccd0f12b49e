"""Evaluate a child, before and after finetuning, and its parent: held-out text and measured throughput."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Evaluation, Scenario, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation
    scenarios: dict[str, Scenario]


def evaluate_model(
    settings: Annotated[str, typer.Option(help="config sections `evaluation` and `scenarios` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("held-out split")],
    table: Annotated[str, writes("EVALUATION table")],
    sequences: Annotated[str, writes("SAMPLES table of the held-out sequences")],
    child: Annotated[str | None, reads_model("assembled child; the parent is evaluated if omitted")] = None,
    finetuned: Annotated[str | None, reads_model("finetuned child")] = None,
    activations: Annotated[str | None, reads("parent's cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write perplexity, KL, agreement and throughput, and the first three of every sequence, for paired differences.

    Children run with packed kernels. Throughput is measured round-robin on the child and on the parent as stock
    transformers runs it and with packed kernels, at the batch size where the child is fastest. Finetuning does not
    change a child's shape, so only the child before finetuning is timed.
    """
    runtime.start()
    from tangram.activations import open_activations
    from tangram.blocks.base import PARENT
    from tangram.corpus.tokens import read_tokens
    from tangram.evaluation.text import compare_on_text, sequence_rows, text_rows
    from tangram.evaluation.throughput import PACKED, measure_throughput
    from tangram.models.families import decoder_layers
    from tangram.models.loading import load_model
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, SAMPLES, write_table

    sections = Settings.model_validate_json(settings)
    section = sections.evaluation
    teacher = load_model(parent, runtime.dtype, runtime.device)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, teacher, input_ids, section.batch_size, runtime.local_copy)
    final = states.hidden(len(decoder_layers(teacher)))
    children = {name: folder for name, folder in (("child", child), ("finetuned", finetuned)) if folder is not None}
    timed = {PARENT: teacher, PACKED: pack(load_model(parent, runtime.dtype, runtime.device))}
    rows, samples = [], []
    for name, folder in (children or {PARENT: parent}).items():
        model = pack(load_model(folder, runtime.dtype, runtime.device)) if children else teacher
        metrics = compare_on_text(model, teacher, final, input_ids, section.batch_size, f"evaluate_model {name}")
        rows += text_rows(name, "heldout", metrics)
        samples += sequence_rows(name, "heldout", metrics)
        if name == next(iter(children), None):
            timed[name] = model
    for name, scenario in sections.scenarios.items():
        batches = [
            measure_throughput(
                timed, name, scenario, batch, section.throughput_repeats, teacher.config.vocab_size, runtime.seed
            )
            for batch in scenario.batch_sizes
        ]
        rows += max(batches, key=lambda measured: _throughput(measured, list(timed)[-1]))
    made_by = provenance("tangram.commands.evaluate_model", settings, runtime.device)
    write_table(rows, EVALUATION, table, made_by)
    write_table(samples, SAMPLES, sequences, made_by)


def _throughput(rows: Iterable[dict[str, Any]], model: str) -> float:
    return next(row["value"] for row in rows if row["model"] == model and row["metric"] == "throughput")


if __name__ == "__main__":
    run(evaluate_model)
