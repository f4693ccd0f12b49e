"""Evaluate models on BIG-bench multiple-choice tasks, offline with lm-eval, paired by question."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import Evaluation


def evaluate_tasks(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    child: Annotated[str, reads_model("assembled child")],
    finetuned: Annotated[str, reads_model("finetuned child")],
    work: Annotated[str, typer.Option(help="scratch folder for the generated task files")],
    output: Annotated[str, writes("EVALUATION table")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write accuracies with standard errors, and every model's paired difference to the parent.

    The standard error of a difference is smaller than that of an accuracy: several points for a few hundred questions.
    """
    import os

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    runtime.start()
    from tangram.archives import fetch_archive
    from tangram.errors import TangramError
    from tangram.evaluation.tasks import answer_tasks, read_tasks, task_rows, write_tasks
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.provenance import provenance
    from tangram.tables import EVALUATION, write_table

    section = Evaluation.model_validate_json(settings)
    if section.task_archive is None or not section.tasks:
        raise TangramError("config.evaluation.tasks is empty; name the tasks to evaluate")
    write_tasks(read_tasks(fetch_archive(section.task_archive), section.tasks), work)
    answers = {}
    for name, folder in {"parent": parent, "child": child, "finetuned": finetuned}.items():
        model, tokenizer = load_model(folder, runtime.dtype, runtime.device), load_tokenizer(folder)
        label = f"evaluate_tasks {name}"
        answers[name] = answer_tasks(model, tokenizer, work, section.tasks, section.task_limit, label)
    metadata = provenance("tangram.commands.evaluate_tasks", settings, runtime.device)
    write_table(task_rows(answers), EVALUATION, output, metadata)


if __name__ == "__main__":
    run(evaluate_tasks)
