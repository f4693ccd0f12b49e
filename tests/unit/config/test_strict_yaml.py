"""Config files: a key that appears twice, or a number that YAML reads as another one, is one line that says where."""

from pathlib import Path

import pytest
import yaml

from tangram.config.strict_yaml import check_command_line, read_yaml
from tangram.errors import TangramError

FAULTS = {
    "at the top": ("seed: 1\nrun: a\nseed: 7\n", "'seed' appears twice, in lines 1 and 3; keep one"),
    "with equal values": ("seed: 1\nseed: 1\n", "'seed' appears twice"),
    "in a section": ("a:\n  b:\n    c: 1\n    d: 2\n    c: 3\n", "'a.b.c' appears twice, in lines 3 and 5"),
    "in one line": ("a: {b: 1, c: 2, b: 3}", "'a.b' appears twice, in line 1"),
    "in a list": ("a:\n- {b: 1}\n- {c: 1,\n   c: 2}\n", "'a[1].c' appears twice, in lines 3 and 4"),
    "in a list of lists": ("a: [[1], [{b: 1, b: 2}]]", "'a[1][0].b' appears twice"),
    "behind an anchor": ("a: &x {b: 1, b: 2}\nc: *x\n", "'a.b' appears twice"),
    "in a merge's mapping": ("a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}\n", "'c.d' appears twice"),
    "two merges": ("a: &x {b: 1}\nc: &y {b: 2}\nd: {<<: *x, <<: *y}\n", "'d.<<' appears twice"),
    "quoted and plain": ("seed: 1\n'seed': 2\n", "'seed' appears twice"),
    "two spellings of a number": ("a: {1: x, 0x1: y}", "'a.1' appears twice"),
    "two spellings of a truth": ("a: {yes: x, on: y}", "'a.True' appears twice"),
    "JSON": ('{"a": {"b": 1,\n"b": 2}}', "'a.b' appears twice, in lines 1 and 2"),
    "JSON with tabs": ('{\n\t"a": 1,\n\t"a": 2\n}', "'a' appears twice, in lines 2 and 3"),
    "a byte order mark and CRLF": ("\ufeffa: 1\r\nb: 2\r\na: 3\r\n", "'a' appears twice, in lines 1 and 3"),
    "an octal number": ("seed: 010\n", "'seed' in line 1: YAML reads 010 as 8; write that number, or quote text"),
    "sixties": ("a:\n  time_limit: 1:30\n", "'a.time_limit' in line 2: YAML reads 1:30 as 90"),
}
RIGHT = [
    "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: *x\n",  # a merge's key that is set anew is no duplicate
    "a: &x {b: 1}\nc: &y {b: 2}\nd: {<<: [*x, *y]}\n",
    "a: [{b: 1}, {b: 2}]\nb: {a: {b: 1}}\n",
    "a: '010'\nb: '1:30'\nc: 0\nd: 0.5\ne: 1_000\nf: 10\n",
    "1: a\n'1': b\n",
    '{"a": 1, "b": {"a": "\\/"}}',
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_that_names_file_key_and_lines(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    path = tmp_path / "my config.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    yaml.safe_load(text.replace("\t", " "))  # PyYAML finds nothing
    with pytest.raises(TangramError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_reads_as_ever(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert read_yaml(path) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-c2 --config seed=1 run=a seed=7", "--config: 'seed' appears twice"),
        ("-n -C seed=1 seed=1", "--config: 'seed' appears twice"),
        ("--config seed=1 -n --config run=a", "--config appears twice, and only the last one counts"),
        ("--config=seed=1 -c2 -C run=a", "--config appears twice"),
        ("--config evaluation={batch_size:1,draws:2}", None),
        ("--config seed=010 run=a:b --cores 2 seed=3", None),
        ("--configfile a.yaml b.yaml --config seed=1", None),
    ],
)
def test_a_key_that_the_command_line_sets_twice_is_told(line: str, message: str | None) -> None:
    if message is None:
        check_command_line(line.split())
        return
    with pytest.raises(TangramError, match=message):
        check_command_line(line.split())


def test_a_key_twice_in_a_section_of_the_command_line_is_told() -> None:
    with pytest.raises(TangramError, match=r"--config evaluation: 'readout\.draws' appears twice"):
        check_command_line(["--config", "evaluation={readout: {draws: 2, draws: 3}}"])
