"""Compare the sums of measured pieces with whole models in an engine; the machine must be idle otherwise."""

import json
import sys
from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, reads, reads_model, run, writes
from tangram.config import Costs, Scenario


def calibrate_costs(
    settings: Annotated[
        str, typer.Option(help="config sections `costs`, `scenarios` and `library`'s variants as JSON")
    ],
    costs: Annotated[str, reads("collected COSTS table")],
    parent: Annotated[str, reads_model("parent, of which config.json is read")],
    output: Annotated[str, writes("CALIBRATION table")],
    engine: Annotated[str, typer.Option(help="torch, llama.cpp or vllm")] = "torch",
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write measured and predicted seconds of whole models, and one scale per scenario, phase and batch."""
    runtime.start()
    import pandas as pd
    from tqdm import tqdm

    from tangram.blocks.architecture import modules_of
    from tangram.costs.calibration import STOCK, WORKLOAD, calibrate, leave_one_out_errors
    from tangram.engines import TIMERS, timer
    from tangram.models.families import shape_of
    from tangram.provenance import provenance
    from tangram.tables import CALIBRATION, COSTS, read_table, write_table

    sections = json.loads(settings)
    table = read_table(costs, COSTS)
    architectures = timer(engine).calibration_architectures(sections["library"], shape_of(parent).num_layers)
    measured = timer(engine).measure_whole(
        parent,
        architectures,
        Costs.model_validate(sections["costs"]),
        {name: Scenario.model_validate(section) for name, section in sections["scenarios"].items()},
        runtime.device,
        runtime.dtype,
        progress=lambda workloads: tqdm(workloads, desc=f"calibrate_costs {engine}: whole models", mininterval=5),
    )
    rows = calibrate(table, architectures, measured)
    modules = [*modules_of(*architectures.values()), TIMERS[engine]]
    metadata = provenance("tangram.commands.calibrate_costs", settings, runtime.device, modules)
    write_table(rows, CALIBRATION, output, metadata)
    frame = pd.DataFrame(rows)
    for workload, group in frame[frame["model"] != STOCK].groupby(WORKLOAD):
        predicted = list(group["subblock_seconds"] + group["fixed_seconds"])
        errors = leave_one_out_errors(predicted, list(group["measured_seconds"]))
        worst = max(map(abs, errors))
        print(
            f"calibrate_costs: {' '.join(map(str, workload))}: scale {group['scale'].iloc[0]:.3f}, "
            f"leave-one-out error at most {worst:.1%}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(calibrate_costs)
