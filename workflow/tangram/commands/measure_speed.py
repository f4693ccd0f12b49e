"""Measure the throughput of all children of a run and of their parent, in one engine."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_each, run, writes
from tangram.config import Evaluation, Scenario, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation
    scenarios: dict[str, Scenario]


def measure_speed(
    engine: Annotated[str, typer.Option(help="torch, llama.cpp or vllm")],
    settings: Annotated[str, typer.Option(help="config sections `evaluation` and `scenarios` as JSON")],
    output: Annotated[str, writes("SPEEDS table")],
    models: Annotated[list[str], reads_each("files of the parent and its children that the engine reads")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Time all models round-robin, as their engine's module loads them."""
    runtime.start()
    from tangram.engines import SPEED_TIMERS, speed_timer
    from tangram.evaluation.speed import speed_rows, time_in_rounds
    from tangram.provenance import provenance
    from tangram.tables import SPEEDS, write_table

    sections, timer = Settings.model_validate_json(settings), speed_timer(engine)
    timed = timer.timed_models(models, sections.scenarios, runtime)
    by_names = time_in_rounds(timed, sections.evaluation.throughput_repeats, runtime.seed)
    samples = {name: times for names, times in by_names.items() for name in names}
    rows = speed_rows(samples, sections.scenarios, timer.SPEEDUPS)
    made_by = provenance("tangram.commands.measure_speed", settings, runtime.device, [SPEED_TIMERS[engine]])
    write_table(rows, SPEEDS, output, made_by)


if __name__ == "__main__":
    run(measure_speed)
