"""Write the model card of an exported child."""

from typing import Annotated

import typer

from tangram.cli import reads, reads_model, run, writes


def write_card(
    settings: Annotated[str, typer.Option(help="the run's config with the child's target as primary one, as JSON")],
    solution: Annotated[str, typer.Option(help="the solution's name")],
    parent: Annotated[str, reads_model("parent")],
    architecture: Annotated[str, reads("architecture.json")],
    output: Annotated[str, writes("model card (Markdown)")],
    evaluation: Annotated[str | None, reads("EVALUATION table of the child")] = None,
    parent_evaluation: Annotated[str | None, reads("EVALUATION table of the parent")] = None,
    speeds: Annotated[str | None, reads("SPEEDS table")] = None,
    engine: Annotated[str | None, reads("EVALUATION table of the child's file in its engine")] = None,
    parent_engine: Annotated[str | None, reads("EVALUATION table of the parent's files there")] = None,
    engine_speeds: Annotated[str | None, reads("SPEEDS table there")] = None,
) -> None:
    """Write the card with what was cut where, quality and speed, how to load the child, and how to reproduce it."""
    import json

    import pandas as pd

    from tangram.blocks.architecture import load_architecture
    from tangram.config import Config
    from tangram.export.card import Facts, card, read_record
    from tangram.files import write_text
    from tangram.models.families import shape_of
    from tangram.tables import EVALUATION, SPEEDS, read_table

    raw = json.loads(settings)
    config = Config.model_validate(raw)
    target = config.primary_target

    def rows(evaluations: tuple[str | None, ...], speeds: str | None) -> pd.DataFrame:
        """Return the rows of the parent and this child."""
        tables = [read_table(path, EVALUATION) for path in evaluations if path]
        if speeds:
            frame = read_table(speeds, SPEEDS)
            of_parent, of_child = frame["target"] == "", (frame["target"] == target) & (frame["solution"] == solution)
            tables.append(frame[of_parent | of_child][EVALUATION.names])
        return pd.concat(tables) if tables else pd.DataFrame(columns=EVALUATION.names)

    facts = Facts(
        run=config.run,
        target=target,
        solution=solution,
        formats=config.targets[target].formats,
        parent=read_record(parent),
        architecture=load_architecture(architecture),
        shape=shape_of(parent),
        evaluation=rows((parent_evaluation, evaluation), speeds),
        engine=config.targets[target].engine,
        files=rows((parent_engine, engine), engine_speeds),
        config=raw,
    )
    write_text(output, card(facts))


if __name__ == "__main__":
    run(write_card)
