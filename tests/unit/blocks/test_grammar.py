"""Names of variants: what belongs together, and what a precision makes of a name."""

import pytest

from tangram.blocks import grammar


@pytest.mark.parametrize(
    ("kind", "forms"),
    [("head", ["parent@bf16", "parent@int8"]), ("attention", ["gqa-K", "linear", "no-op"])],
)
def test_forms_are_those_of_a_kind(kind: str, forms: list[str]) -> None:
    assert [form for form in grammar.forms(kind) if form in forms] == forms
    assert "parent" not in grammar.forms(kind)


@pytest.mark.parametrize(
    ("name", "precision", "source"),
    [
        ("width-0.5", None, None),
        ("width-0.5@int8", "int8", "width-0.5"),
        ("gqa-1@bf16", "bf16", "gqa-1"),
        ("parent@int8", "int8", None),
    ],
)
def test_a_name_tells_its_precision_and_its_source(name: str, precision: str | None, source: str | None) -> None:
    assert grammar.precision_of(name) == precision
    assert grammar.source_of(name) == source


@pytest.mark.parametrize(
    ("name", "complete"),
    [("parent", "parent@int8"), ("width-0.5", "width-0.5@int8"), ("no-op", None), ("width-0.5@bf16", None)],
)
def test_a_precision_is_added_where_the_block_allows_it(name: str, complete: str | None) -> None:
    assert grammar.with_precision(name, "int8") == complete


@pytest.mark.parametrize(
    ("precision", "device", "dtype", "message"),
    [
        ("bf16", "cuda", "bfloat16", "bf16 is the run's dtype"),
        ("int8", "cuda", "float32", "int8 runs on cpu only, not on device: cuda"),
    ],
)
def test_a_precision_must_run_and_differ(precision: str, device: str, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"here: {message}"):
        grammar.check_runs(precision, "here", device, dtype)
    grammar.check_runs(precision, "here", "cpu", "float32")
