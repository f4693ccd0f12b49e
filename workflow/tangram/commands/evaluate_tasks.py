"""Answer BIG-bench multiple-choice tasks with a parent or a child, offline with lm-eval."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import Evaluation


def evaluate_tasks(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    work: Annotated[str, typer.Option(help="scratch folder for the generated task files")],
    output: Annotated[str, writes("SAMPLES table of the questions")],
    parent: Annotated[str | None, reads_model("parent")] = None,
    child: Annotated[str | None, reads_model("assembled child")] = None,
    finetuned: Annotated[str | None, reads_model("finetuned child")] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write each model's result on every question; all models answer the same questions, so differences are paired.

    Models run with packed kernels. A finetuned child with the child's weights is not evaluated again.
    """
    import os

    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    runtime.start()
    from pathlib import Path

    from tangram.archives import fetch_archive
    from tangram.errors import TangramError
    from tangram.evaluation.tasks import answer_rows, answer_tasks, read_tasks, write_tasks
    from tangram.files import digest_of_tensors
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import SAMPLES, write_table

    section = Evaluation.model_validate_json(settings)
    if section.task_archive is None or not section.tasks:
        raise TangramError("config.evaluation.tasks is empty; name the tasks to evaluate")
    models = {"parent": parent, "child": child, "finetuned": finetuned}
    folders = {name: folder for name, folder in models.items() if folder is not None}
    write_tasks(read_tasks(fetch_archive(section.task_archive), section.tasks), work)
    answers, rows = {}, []
    for name, folder in folders.items():
        weights = digest_of_tensors(Path(folder) / "model.safetensors")
        if weights not in answers:
            model = pack(load_model(folder, runtime.dtype, runtime.device))
            label = f"evaluate_tasks {name}"
            answers[weights] = answer_tasks(
                model, load_tokenizer(folder), work, section.tasks, section.task_limit, label
            )
        rows += answer_rows(name, answers[weights])
    write_table(rows, SAMPLES, output, provenance("tangram.commands.evaluate_tasks", settings, runtime.device))


if __name__ == "__main__":
    run(evaluate_tasks)
