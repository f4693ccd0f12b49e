"""The pretended device, for every test that asks for it."""

from collections import Counter
from collections.abc import Iterator

import pytest


@pytest.fixture
def pretend_cuda() -> Iterator[Counter[str]]:
    """Let `device="cuda"` run on a machine without a GPU; see `pretend_device`."""
    from pretend_device import pretend

    with pretend() as products:
        yield products
