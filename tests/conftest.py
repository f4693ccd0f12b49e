"""Fixtures for all tests: tiny random parents on disk, of every supported family, with a real tokenizer."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tiny_pipeline"]


@pytest.fixture(scope="session")
def tiny_parent(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a factory of checkpoint folders: ``tiny_parent(model_type, **settings)``; each folder is made once."""
    built: dict[str, Path] = {}

    def factory(model_type: str = "llama", **overrides: object) -> Path:
        key = json.dumps([model_type, overrides], sort_keys=True)
        if key not in built:
            from tiny_models import write_parent

            built[key] = tmp_path_factory.mktemp(model_type)
            write_parent(built[key], model_type, **overrides)
        return built[key]

    return factory


@pytest.fixture
def pretend_cuda() -> Iterator[Counter[str]]:
    """Let `device="cuda"` run on a machine without a GPU, and count matrix products by device; see `pretend_device`."""
    from pretend_device import pretend

    with pretend() as products:
        yield products
