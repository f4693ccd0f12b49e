"""Classify texts from the hidden states of parent and child with a few labels."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import PackageFile, Readout, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    readout: Readout
    archive: PackageFile


def evaluate_readout(
    settings: Annotated[str, typer.Option(help="`readout` and `archive`, of config section `evaluation`, as JSON")],
    parent: Annotated[str, reads_model("parent")],
    child: Annotated[str, reads_model("assembled child")],
    finetuned: Annotated[str, reads_model("finetuned child")],
    output: Annotated[str, writes("EVALUATION table")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write accuracies with standard errors over draws of labels, and every model's paired difference to the parent."""
    runtime.start()
    from tangram.archives import fetch_archive
    from tangram.errors import TangramError
    from tangram.evaluation.readout import embed_texts, read_classification, read_out, readout_rows
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, write_table

    sections = Settings.model_validate_json(settings)
    section = sections.readout
    if section.task is None:
        raise TangramError("config.evaluation.readout.task is empty; name the task to evaluate")
    data = read_classification(fetch_archive(sections.archive), section.task)
    answers = {}
    for name, folder in {"parent": parent, "child": child, "finetuned": finetuned}.items():
        model, tokenizer = load_model(folder, runtime.dtype, runtime.device), load_tokenizer(folder)
        label = f"evaluate_readout {name}"
        embeddings = embed_texts(model, tokenizer, data.texts, section.depth, section.batch_size, label)
        answers[name] = read_out(embeddings, data.labels, section, runtime.seed)
    metadata = provenance("tangram.commands.evaluate_readout", settings, runtime.device)
    write_table(readout_rows(section.task, answers), EVALUATION, output, metadata)


if __name__ == "__main__":
    run(evaluate_readout)
