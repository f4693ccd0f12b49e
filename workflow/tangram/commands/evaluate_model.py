"""Evaluate a child, before and after finetuning, or its parent on held-out text."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Evaluation, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation


def evaluate_model(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    corpus: Annotated[str, reads("held-out split")],
    table: Annotated[str, writes("EVALUATION table")],
    sequences: Annotated[str, writes("SAMPLES table of the held-out sequences")],
    child: Annotated[str | None, reads_model("assembled child; the parent is evaluated if omitted")] = None,
    finetuned: Annotated[str | None, reads_model("finetuned child")] = None,
    activations: Annotated[str | None, reads("parent's cached activations; recomputed if omitted")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write perplexity, KL and agreement, and those of every sequence, for paired differences.

    Children run with packed kernels, the parent as in stock transformers. A finetuned child with the child's weights is
    not evaluated again.
    """
    runtime.start()
    from pathlib import Path

    from tangram.activations import open_activations
    from tangram.blocks.base import PARENT
    from tangram.corpus.tokens import read_tokens
    from tangram.evaluation.text import compare_on_text, sequence_rows, text_rows
    from tangram.files import digest_of_tensors
    from tangram.models.families import decoder_layers
    from tangram.models.loading import load_model
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, SAMPLES, write_table

    section = Settings.model_validate_json(settings).evaluation
    teacher = load_model(parent, runtime.dtype, runtime.device)
    input_ids = read_tokens(corpus)
    states = open_activations(activations, teacher, input_ids, section.batch_size, runtime.local_copy)
    final = states.hidden(len(decoder_layers(teacher)))
    children = {name: folder for name, folder in (("child", child), ("finetuned", finetuned)) if folder is not None}
    measured, rows, samples = {}, [], []
    for name, folder in (children or {PARENT: parent}).items():
        weights = digest_of_tensors(Path(folder) / "model.safetensors") if children else ""
        if weights not in measured:
            model = pack(load_model(folder, runtime.dtype, runtime.device)) if children else teacher
            label = f"evaluate_model {name}"
            measured[weights] = compare_on_text(model, teacher, final, input_ids, section.batch_size, label)
        rows += text_rows(name, "heldout", measured[weights])
        samples += sequence_rows(name, "heldout", measured[weights])
    made_by = provenance("tangram.commands.evaluate_model", settings, runtime.device)
    write_table(rows, EVALUATION, table, made_by)
    write_table(samples, SAMPLES, sequences, made_by)


if __name__ == "__main__":
    run(evaluate_model)
