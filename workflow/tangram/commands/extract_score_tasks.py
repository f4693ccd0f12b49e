"""Extract the questions for scores by downstream accuracy: the train halves of tasks."""

from typing import Annotated

import typer

from tangram.cli import run, writes
from tangram.config import PackageFile, ScoreTasks, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    tasks: ScoreTasks | None
    archive: PackageFile | None


def extract_score_tasks(
    settings: Annotated[str, typer.Option(help="`scores.tasks` and `evaluation.task_archive` as JSON")],
    output: Annotated[str, writes("questions with their choices (JSON)")],
    source_files: Annotated[str, typer.Option(help="fingerprint of the files that the config names")] = "none",
) -> None:
    """Write the questions that scores use; `extract_tasks` leaves all questions of their halves out of evaluation."""
    from tangram.errors import TangramError
    from tangram.files import check_writable
    from tangram.scores.questions import save_questions, train_questions

    section = Settings.model_validate_json(settings)
    if section.tasks is None:
        raise TangramError("config.scores.tasks is empty; name the tasks to score by")
    check_writable(output)
    save_questions(train_questions(section.tasks, section.archive), output)


if __name__ == "__main__":
    run(extract_score_tasks)
