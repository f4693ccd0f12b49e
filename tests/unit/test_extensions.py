"""Entry points: found by name, loaded when asked for, and an unknown name is one line."""

import subprocess
import sys

import pytest

from tangram.config import Selection
from tangram.errors import TangramError
from tangram.extensions import GROUPS, load, registered


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_registered_can_be_loaded(group: str) -> None:
    assert registered(group)
    assert all(callable(load(group, name)) for name in registered(group))


def test_an_unknown_name_is_one_line_with_the_nearest() -> None:
    with pytest.raises(
        TangramError, match=r"^no installed package registers 'rucbb' in tangram.policies; .* 'rucb'\?$"
    ):
        load("tangram.policies", "rucbb")
    with pytest.raises(ValueError, match=r"'rucbb' is not a policy; did you mean 'rucb'\?"):
        Selection(policy="rucbb")


def test_a_config_is_checked_without_importing_what_is_registered() -> None:
    script = (
        "import sys; from tangram.config import Selection; Selection(policy='rucb')\n"
        "print([name for name in ('numpy', 'torch', 'tangram_studies.bandits') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
