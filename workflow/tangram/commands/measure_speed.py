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
    configs are timed once.
    """
    runtime.start()
    from functools import partial
    from pathlib import Path

    from tangram.blocks.base import PARENT
    from tangram.evaluation.speed import Name, Place, Seconds, speed_rows, time_in_rounds
    from tangram.evaluation.torch_speed import PACKED, time_model
    from tangram.models.loading import load_model
    from tangram.models.packed import pack
    from tangram.provenance import provenance
    from tangram.tables import SPEEDS, write_table

    sections = Settings.model_validate_json(settings)

    def time_folder(folder: str | Path, packed: bool = True) -> dict[Place, Seconds]:
        model = load_model(folder, runtime.dtype, runtime.device)
        return time_model(pack(model) if packed else model, sections.scenarios, runtime.seed)

    stock, fast = ("", "", PARENT), ("", "", PACKED)
    folders: dict[Name, Path] = {}
    for weights in children:
        folder = Path(weights).parent
        folders[folder.parent.parent.name, folder.parent.name, "child"] = folder
    configs = {name: (folder / "config.json").read_text(encoding="utf-8") for name, folder in folders.items()}
    first = {config: name for name, config in reversed(configs.items())}
    functions = {stock: partial(time_folder, parent, packed=False), fast: partial(time_folder, parent)}
    functions |= {name: partial(time_folder, folders[name]) for name in first.values()}
    samples = time_in_rounds(functions, sections.evaluation.throughput_repeats, runtime.seed)
    samples |= {name: samples[first[config]] for name, config in configs.items()}
    rows = speed_rows(samples, sections.scenarios, {"speedup": stock, "packed_speedup": fast})
    write_table(rows, SPEEDS, output, provenance("tangram.commands.measure_speed", settings, runtime.device))


if __name__ == "__main__":
    run(measure_speed)
