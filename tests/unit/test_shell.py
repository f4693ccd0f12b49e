"""A rule's shell line, from the signature of its command."""

import pytest
from snakemake.utils import format as format_snakemake

from tangram.shell import command


def test_each_option_is_taken_from_where_the_rule_has_it() -> None:
    assert command("score_blocks").split(" --") == [
        "python -m tangram.commands.score_blocks",
        "settings {params.settings:q}",
        "pieces {wildcards.kind:q}/{wildcards.variant:q}/{wildcards.shard:q}",
        "parent {input.parent:q}",
        "corpus {input.corpus:q}",
        "library {input.library:q}",
        "output {output:q}",
        "activations={input.activations:q}",
        "runtime={params.runtime:q},{params.unrecorded:q} 2> >(tee {log:q} >&2)",
    ]


def test_an_optional_value_may_be_empty() -> None:
    line = command("select_child")
    assert " --finetune={params.finetune:q} " in line  # after a space the next option would become the value
    assert format_snakemake("--finetune={value:q} --x", value="") == "--finetune= --x"


def test_a_list_of_files_comes_without_a_name() -> None:
    line = command("collect_tables")
    assert " {input.tables:q}" in line
    assert "--tables" not in line


def test_a_rule_may_leave_options_at_their_defaults() -> None:
    whole, part = command("evaluate_model"), command("evaluate_model", without=("child", "finetuned"))
    assert part == whole.replace(" --child={input.child:q} --finetuned={input.finetuned:q}", "")
    assert part != whole


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="nothing is not a command"):
        command("nothing")
    with pytest.raises(ValueError, match="score_blocks has no option child"):
        command("score_blocks", without=("child",))
