from pathlib import Path

import pytest
from synthetic_run import write_results


@pytest.fixture(scope="session")
def complete(tmp_path_factory) -> Path:
    """Return a complete run's folder; tests that change it copy it first."""
    return write_results(tmp_path_factory.mktemp("run") / "smollm2-cpu")
