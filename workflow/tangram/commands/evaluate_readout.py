"""Read classes of texts from the hidden states of parent and child with a few labels."""

from typing import Annotated

import typer

from tangram.cli import run, use_threads
from tangram.config import PackageFile, Readout, Section


class Settings(Section):
    """The slices of config that this command takes."""

    readout: Readout
    archive: PackageFile


def evaluate_readout(
    settings: Annotated[str, typer.Option(help="`readout` and `archive`, of config section `evaluation`, as JSON")],
    models: Annotated[list[str], typer.Option(help="name=folder, once per model: parent, child, finetuned")],
    output: Annotated[str, typer.Option(help="EVALUATION table to write")],
    device: str = "cpu",
    dtype: str = "float32",
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Write accuracies with standard errors over draws of labels, and every model's paired difference to the parent."""
    use_threads(threads, seed, device)
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
    for name, _, folder in (model.partition("=") for model in models):
        model, tokenizer = load_model(folder, dtype, device), load_tokenizer(folder)
        label = f"evaluate_readout {name}"
        embeddings = embed_texts(model, tokenizer, data.texts, section.depth, section.batch_size, label)
        answers[name] = read_out(embeddings, data.labels, section, seed)
    made_by = provenance("tangram.commands.evaluate_readout", settings, device)
    write_table(readout_rows(section.task, answers), EVALUATION, output, made_by)


if __name__ == "__main__":
    run(evaluate_readout)
