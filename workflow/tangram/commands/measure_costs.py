"""Time one variant of one kind and the parent's subblock in an engine; the machine must be idle otherwise."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads_model, run, writes
from tangram.config import Costs, Scenario


def measure_costs(
    settings: Annotated[str, typer.Option(help="config sections `costs` and `scenarios` as JSON")],
    kind: Annotated[str, typer.Option(help="attention, ffn, or model: embedding, final norm and LM head")],
    variant: Annotated[str, typer.Option(help="e.g. parent, gqa-1, width-0.5, linear, no-op")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    output: Annotated[str, writes("COSTS table")],
    engine: Annotated[str, typer.Option(help="torch, llama.cpp or vllm")] = "torch",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write seconds of prefill and decode, parameter bytes and KV bytes per token, for every scenario and batch."""
    runtime.start()
    from tqdm import tqdm

    from tangram.blocks import Variant
    from tangram.blocks.registry import modules_of_variants
    from tangram.config.limits import check_length
    from tangram.engines import TIMERS, timer
    from tangram.models.capability import check_capability
    from tangram.provenance import provenance
    from tangram.tables import COSTS, write_table

    check_capability([Variant.parse(variant).precision], runtime.device)
    sections = json.loads(settings)
    scenarios = {name: Scenario.model_validate(section) for name, section in sections["scenarios"].items()}
    parent_config = json.loads(Path(parent, "config.json").read_text())
    for name, scenario in scenarios.items():
        length = scenario.prefill + scenario.generate
        check_length(f"scenarios.{name}: prefill + generate", length, parent_config)
    rows = timer(engine).measure(
        parent,
        kind,
        variant,
        Costs.model_validate(sections["costs"]),
        scenarios,
        runtime.device,
        runtime.dtype,
        progress=lambda workloads: tqdm(workloads, desc=f"measure_costs {engine}: {kind} {variant}", mininterval=5),
    )
    modules = [*modules_of_variants([variant]), TIMERS[engine]]
    write_table(rows, COSTS, output, provenance("tangram.commands.measure_costs", settings, runtime.device, modules))


if __name__ == "__main__":
    run(measure_costs)
