"""Run a study: `python -m tangram_studies ntk images=fashion-mnist.npz --settings '{}' --output results/ntk`."""

from pathlib import Path
from typing import Annotated

import typer

from tangram.cli import ONE_THREAD, RuntimeOption, run

NAMES = sorted(path.stem for path in (Path(__file__).parent / "papers").glob("[!_]*"))


def study(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(NAMES)}", metavar="NAME")],
    settings: Annotated[
        str, typer.Option(help="config section `studies` as JSON, or all sections that the study depends on")
    ],
    output: Annotated[str, typer.Option(help="folder for claims.parquet, measurements.parquet and report.html")],
    inputs: Annotated[list[str] | None, typer.Argument(help="NAME=PATH of each input file", show_default=False)] = None,
    runtime: RuntimeOption = ONE_THREAD,
) -> None:
    """Write a paper's claims with verdicts, the measurements that support them, and a page with figures."""
    import importlib

    from tangram.errors import TangramError, nearest
    from tangram.provenance import provenance
    from tangram_studies.code import modules_of_study
    from tangram_studies.study import Job, write_study

    if name not in NAMES:
        raise TangramError(f"no study is called '{name}'{nearest(name, NAMES)}")
    module, *others = modules_of_study(name)
    job = Job(settings, dict(text.split("=", 1) for text in inputs or ()), Path(output), runtime)
    finished = importlib.import_module(module).run_study(job)
    write_study(finished, output, provenance(module, settings, runtime.device, others))


if __name__ == "__main__":
    run(study)
