"""Measure the throughput of all children of a run and of their parent, in torch."""

from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_each, reads_model, run, writes
from tangram.config import Evaluation, Scenario, Section


class Settings(Section):
    """The slice of the config that this command needs."""

    evaluation: Evaluation
    scenarios: dict[str, Scenario]


def measure_speed(
    settings: Annotated[str, typer.Option(help="config sections `evaluation` and `scenarios` as JSON")],
    parent: Annotated[str, reads_model("parent")],
    output: Annotated[str, writes("SPEEDS table")],
    children: Annotated[list[str], reads_each("weights in the children's folders, {target}/{solution}/child")],
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Time all models round-robin: the parent as stock transformers runs it, and packed parent and children.

    Finetuning does not change a child's shape, so only the child before finetuning is timed; children with equal
    configs are timed once. On a GPU, or if
    they do not fit in memory together, models are loaded anew in every round, one at a time.
    """
    runtime.start()
    from functools import partial
    from pathlib import Path

    from tangram.blocks.base import PARENT
    from tangram.evaluation.speed import Name, speed_rows, time_in_rounds
    from tangram.evaluation.torch_speed import PACKED, fit_together, load_packed, timer
    from tangram.models.loading import load_model
    from tangram.provenance import provenance
    from tangram.tables import SPEEDS, write_table

    sections = Settings.model_validate_json(settings)
    stock, fast = ("", "", PARENT), ("", "", PACKED)
    folders: dict[Name, Path] = {stock: Path(parent), fast: Path(parent)}
    for folder in (Path(weights).parent for weights in children):
        folders[folder.parent.parent.name, folder.parent.name, "child"] = folder
    same = {name: (name == stock, (folder / "config.json").read_bytes()) for name, folder in folders.items()}
    first = {shape: name for name, shape in reversed(same.items())}
    keep = runtime.device == "cpu" and fit_together([folders[name] for name in first.values()])

    timers = {}
    for name in first.values():
        load = partial(load_model if name == stock else load_packed, folders[name], runtime.dtype, runtime.device)
        timers[name] = timer(load, sections.scenarios, runtime.seed, runtime.device, keep)
    timed = time_in_rounds(timers, sections.evaluation.throughput_repeats, runtime.seed)
    samples = {name: timed[first[shape]] for name, shape in same.items()}
    rows = speed_rows(samples, sections.scenarios, {"speedup": stock, "packed_speedup": fast})
    write_table(rows, SPEEDS, output, provenance("tangram.commands.measure_speed", settings, runtime.device))


if __name__ == "__main__":
    run(measure_speed)
