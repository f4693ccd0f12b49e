"""Resolve the tasks of a config: extract questions, and fetch the datasets of lm-eval's tasks."""

from typing import Annotated

import typer

from tangram.cli import run, writes
from tangram.config import Evaluation


class Settings(Evaluation):
    """The slice of the config that this command needs; ``score_tasks`` are those of `scores.tasks.names`."""

    score_tasks: tuple[str, ...] = ()


def extract_tasks(
    settings: Annotated[str, typer.Option(help="`tasks`, `task_archive` and `score_tasks` as JSON")],
    output: Annotated[str, writes("tasks by name, with the questions of those that have any (JSON)")],
    source_files: Annotated[str, typer.Option(help="fingerprint of the files that the config names")] = "none",
) -> None:
    """Write all tasks; load lm-eval's once, so that unknown names and missing datasets stop here.

    BIG-bench's questions are those that have exactly one right choice. Questions of the halves that scores use are left
    out.
    """
    import tempfile

    from tangram.errors import TangramError
    from tangram.evaluation.benchmarks import resolve
    from tangram.evaluation.harness import load
    from tangram.evaluation.tasks import save_tasks, write_tasks
    from tangram.files import check_writable
    from tangram.scores.questions import tasks_of, without_train_half

    section = Settings.model_validate_json(settings)
    if not section.tasks:
        raise TangramError("config.evaluation.tasks is empty; name the tasks to evaluate")
    check_writable(output)
    tasks = resolve(section)
    if section.score_tasks:
        tasks = without_train_half(tasks, tasks_of(section.score_tasks, section.task_archive))
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(tasks, folder)
        for name, task in tasks.items():
            load(name, task, folder)
    save_tasks(tasks, output)


if __name__ == "__main__":
    run(extract_tasks)
