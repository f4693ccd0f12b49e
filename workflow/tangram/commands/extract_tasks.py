"""Extract the questions of BIG-bench multiple-choice tasks from a package."""

from typing import Annotated

import typer

from tangram.cli import run, writes
from tangram.config import Evaluation


def extract_tasks(
    settings: Annotated[str, typer.Option(help="config section `evaluation` as JSON")],
    output: Annotated[str, writes("questions by task (JSON)")],
) -> None:
    """Write the questions of all tasks that have exactly one right choice."""
    from tangram.archives import fetch_archive
    from tangram.errors import TangramError
    from tangram.evaluation.tasks import read_tasks, save_questions

    section = Evaluation.model_validate_json(settings)
    if section.task_archive is None or not section.tasks:
        raise TangramError("config.evaluation.tasks is empty; name the tasks to evaluate")
    save_questions(read_tasks(fetch_archive(section.task_archive), section.tasks), output)


if __name__ == "__main__":
    run(extract_tasks)
