"""The real `snakemake` command in a process that is forked after the import of Snakemake.

Imports take half of a plan's time. Nothing of this repository is preloaded: every plan reads its Snakefile and package.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PROGRAM = str(Path(sys.executable).with_name("snakemake"))

_forking = multiprocessing.get_context("forkserver")
# The other packages that a plan imports, and pytest, which is the main module that every process imports.
_forking.set_forkserver_preload(
    [
        *("snakemake.cli", "snakemake.report.html_reporter", "snakemake_executor_plugin_slurm"),
        *("smart_open", "typer", "pydantic", "psutil", "pytest"),
    ]
)


def warm_snakemake(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `snakemake` in a folder, as `subprocess.run` would."""
    with tempfile.TemporaryDirectory() as printed:
        *paths, status = [Path(printed) / name for name in ("stdout", "stderr", "status")]
        command = [PROGRAM, *map(str, arguments)]
        arguments_of_main = (command, folder, dict(environment or os.environ), paths, status)
        process = _forking.Process(target=_main, args=arguments_of_main)
        process.start()
        process.join()
        # The file, as `process.exitcode` is 255 at times where threads start processes: `start` of one thread reads the
        # pipe with the status of another thread's process, and `join` then finds it empty.
        ended = int(status.read_text()) if status.exists() else process.exitcode
        assert ended is not None
        return subprocess.CompletedProcess(command, ended, *(path.read_text() for path in paths))


def _main(command: list[str], folder: Path, environment: dict[str, str], printed: list[Path], status: Path) -> None:
    for descriptor, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.dont_write_bytecode = False  # so that the digests of modules are kept for the next plan
    sys.argv = command
    from snakemake.cli import main

    try:
        main()
    except SystemExit as ended:
        status.write_text(str(ended.code if isinstance(ended.code, int) else int(ended.code is not None)))
        raise
