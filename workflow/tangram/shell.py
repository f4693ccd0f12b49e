"""Generate a rule's shell line from the signature of its command: one option per parameter.

Standard library only, and no command is imported, because the Snakefile generates every rule's line in every job.
"""

import ast
import functools
from collections.abc import Collection
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"
WILDCARDS = frozenset({"kind", "variant", "shard", "split", "solution", "engine", "rival", "draw"})
VALUES = {
    "runtime": "{params.runtime:q},{params.unrecorded:q}",
    "pieces": "{wildcards.kind:q}/{wildcards.variant:q}/{wildcards.shard:q}",
}
# The functions that annotate a parameter (see `cli`), and the directive of the rule that holds its value.
DIRECTIVES = {"reads": "input", "reads_model": "input", "reads_each": "input", "writes": "output"}
# Standard error goes to the log and to the terminal: Snakemake alone would name the log but not show the error.
LOGGED = "2> >(tee {log:q} >&2)"


def _marker(annotation: ast.expr | None) -> str:
    """Return the function that describes an option: `reads` of ``Annotated[str, reads("a table")]``, or nothing."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
        call = annotation.slice.elts[-1]
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return call.func.id
    return ""


def _option(name: str, marker: str, optional: bool) -> str:
    """Return an option and its value."""
    directive = DIRECTIVES.get(marker, "wildcards" if name in WILDCARDS else "params")
    value = "{output:q}" if name == directive else VALUES.get(name, f"{{{directive}.{name}:q}}")
    if marker == "reads_each":
        return value
    # The value of an optional one may be empty, which `reads` converts to None; after a space it would not be there.
    return f"--{name.replace('_', '-')}{'=' if optional else ' '}{value}"


@functools.cache
def command(name: str, without: Collection[str] = ()) -> str:
    """Return the shell line that runs a command in a rule.

    Args:
        name: a module of `tangram.commands` with a function of that name.
        without: options that this rule leaves at their defaults.

    Raises:
        ValueError: the command does not exist, or it has no such option.
    """
    path = COMMANDS / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None:
        raise ValueError(f"{name} is not a command")
    arguments = function.args.args
    if unknown := set(without) - {argument.arg for argument in arguments}:
        raise ValueError(f"{name} has no option {', '.join(sorted(unknown))}")
    first_optional = len(arguments) - len(function.args.defaults)
    options = [
        _option(argument.arg, _marker(argument.annotation), position >= first_optional)
        for position, argument in enumerate(arguments)
        if argument.arg not in without
    ]
    return " ".join([f"python -m tangram.commands.{name}", *options, LOGGED])
