"""Answer the questions of tasks with a parent or a child, offline with lm-eval."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Evaluation


def evaluate_tasks(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    questions: Annotated[str, reads("tasks by name, with their questions (JSON)")],
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

    from tangram.evaluation.harness import Outcomes, answer_rows, answer_tasks
    from tangram.evaluation.tasks import load_tasks, write_tasks
    from tangram.files import by_weights
    from tangram.models.loading import load_model, load_tokenizer
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import SAMPLES, write_table

    limit, tasks = Evaluation.model_validate_json(settings).task_limit, load_tasks(questions)
    models = {"parent": parent, "child": child, "finetuned": finetuned}
    write_tasks(tasks, work)

    def answers_of(name: str, folder: str) -> dict[str, Outcomes]:
        model = pack(load_model(folder, runtime.dtype, runtime.device))
        return answer_tasks(model, load_tokenizer(folder), work, tasks, limit, f"evaluate_tasks {name}")

    rows = [row for name, answers in by_weights(models, answers_of) for row in answer_rows(name, answers)]
    write_table(rows, SAMPLES, output, provenance("tangram.commands.evaluate_tasks", settings, runtime.device))


if __name__ == "__main__":
    run(evaluate_tasks)
