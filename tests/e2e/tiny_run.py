"""The real `snakemake` command in a folder of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """A finished run: where it is, what configured it, and what the first command printed."""

    folder: Path
    config: dict
    printed: str

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.config["run"]

    def snakemake(self, *arguments: str, config: dict | None = None) -> subprocess.CompletedProcess[str]:
        """Run `snakemake` in the run's folder, with the run's config or another."""
        return snakemake(self.folder, config or self.config, *arguments)


def snakemake(folder: Path, config: dict, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the repository's Snakefile in ``folder``, as a user would."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
    return subprocess.run(
        [*command, "--directory", str(folder), "--configfile", str(folder / "config.yaml"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
