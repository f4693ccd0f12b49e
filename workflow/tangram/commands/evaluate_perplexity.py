"""Evaluate the perplexity of a parent or a child on texts by the field's conventions."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import Evaluation


def evaluate_perplexity(
    settings: Annotated[str, typer.Option(help="`perplexity`, of config section `evaluation`, as JSON")],
    output: Annotated[str, writes("SAMPLES table of the texts' windows or pages")],
    parent: Annotated[str | None, reads_model("parent")] = None,
    child: Annotated[str | None, reads_model("assembled child")] = None,
    finetuned: Annotated[str | None, reads_model("finetuned child")] = None,
    source_files: Annotated[str, typer.Option(help="fingerprint of the local texts, to record")] = "none",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write each model's loss on every window or page; all models read the same ones, so differences are paired.

    Models run with packed kernels. A finetuned child with the child's weights is not evaluated again.
    """
    runtime.start()
    import sys

    from tangram.config.sources import METADATA
    from tangram.evaluation.perplexity import UNITS, Losses, loss_rows, losses_of, perplexity_of, read_text
    from tangram.files import by_weights, check_writable
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import SAMPLES, write_table

    check_writable(output)
    sections = Evaluation.model_validate_json(settings).perplexity
    texts = {section.name: read_text(section.name, section.source) for section in sections}
    models = {"parent": parent, "child": child, "finetuned": finetuned}

    def measure(name: str, folder: str) -> list[Losses]:
        model, tokenizer = pack(load_model(folder, runtime.dtype, runtime.device)), load_tokenizer(folder)
        return [
            losses_of(model, tokenizer, section, texts[section.name], f"evaluate_perplexity {name} {section.name}")
            for section in sections
        ]

    rows = []
    for name, losses in by_weights(models, measure):
        for section, found in zip(sections, losses, strict=True):
            unit = UNITS[section.level].removesuffix("s")
            print(f"{name}: {section.name}: perplexity {perplexity_of(found):.4f} per {unit}", file=sys.stderr)
            rows += loss_rows(name, section, found)
    metadata = provenance("tangram.commands.evaluate_perplexity", settings, runtime.device)
    write_table(rows, SAMPLES, output, {**metadata, METADATA: source_files})


if __name__ == "__main__":
    run(evaluate_perplexity)
