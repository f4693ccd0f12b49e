"""A mistake in the config ends `snakemake` before any work: exit status 1 and one clear line."""

from pathlib import Path

import pytest
from tiny_run import snakemake

MISTAKES = {
    "an unknown key": ({"sede": 1}, "error: config.sede: unknown key; did you mean 'seed'?"),
    "an unknown variant": (
        {"library": {"attention": ["gqa-1"], "ffn": ["ffn_60"]}},
        "error: config: library.ffn[0]: 'ffn_60' is not a known variant; did you mean 'width-0.6'?",
    ),
    "KV heads that do not divide": (
        {"library": {"attention": ["gqa-3"]}},
        "error: config: library.attention[0]: 'gqa-3': 3 KV heads do not divide the parent's 2; valid: gqa-1",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_config_is_one_line(mistake: str, tiny_config: dict, tmp_path: Path) -> None:
    change, message = MISTAKES[mistake]
    done = snakemake(tmp_path, tiny_config | change, "--cores", "2")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [message]
    assert not (tmp_path / "results").exists()
