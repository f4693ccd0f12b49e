"""Evaluate a parent or a child on questions about long texts, which Tangram generates itself."""

from typing import Annotated, Any

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Evaluation


def evaluate_long_context(
    settings: Annotated[str, typer.Option(help="`long_context`, of config section `evaluation`, as JSON")],
    corpus: Annotated[str, reads("held-out split, the text around the statements")],
    output: Annotated[str, writes("LONG_CONTEXT table of the questions")],
    parent: Annotated[str | None, reads_model("parent")] = None,
    child: Annotated[str | None, reads_model("assembled child")] = None,
    finetuned: Annotated[str | None, reads_model("finetuned child")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write each model's result on every question; all models answer the same questions, so differences are paired.

    Models run with packed kernels. A finetuned child with the child's weights is not evaluated again.
    """
    runtime.start()
    import sys

    from tangram.errors import TangramError
    from tangram.evaluation.long_context import Generator, margins, question_rows, read_sentences
    from tangram.files import by_weights, check_writable
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import LONG_CONTEXT, write_table

    check_writable(output)
    section = Evaluation.model_validate_json(settings).long_context
    if section is None:
        raise TangramError("config.evaluation.long_context is empty; name the lengths to evaluate")
    models = {"parent": parent, "child": child, "finetuned": finetuned}
    tokenizer = load_tokenizer(next(folder for folder in models.values() if folder is not None))  # all have one
    generator = Generator(section, tokenizer, read_sentences(corpus, tokenizer), runtime.seed)
    cases: list[tuple[str, int]] = [(task, length) for task in section.tasks for length in section.lengths]
    questions = {case: generator.questions(*case) for case in cases}

    def answers_of(name: str, folder: str) -> dict[tuple[str, int], list[float]]:
        model = pack(load_model(folder, runtime.dtype, runtime.device))
        return {
            case: margins(model, tokenizer, asked, f"evaluate_long_context {name} {case[0]} {case[1]}")
            for case, asked in questions.items()
        }

    rows: list[dict[str, Any]] = []
    for name, answers in by_weights(models, answers_of):
        for (task, length), values in answers.items():
            right = sum(value > 0 for value in values)
            print(f"{name}: {task}, {length} tokens: {right} of {len(values)} right", file=sys.stderr)
            rows += question_rows(name, task, length, questions[task, length], values)
    metadata = provenance("tangram.commands.evaluate_long_context", settings, runtime.device)
    write_table(rows, LONG_CONTEXT, output, metadata)


if __name__ == "__main__":
    run(evaluate_long_context)
