"""The command `tangram`: what people run beside Snakemake; a rule's own is `python -m tangram.commands.<rule>`."""

from __future__ import annotations

import typer

from tangram import __version__
from tangram.cli import run_app
from tangram.commands.print_summary import print_summary
from tangram.tools.chat import chat
from tangram.tools.pairs import pairs
from tangram.tools.plan import plan
from tangram.tools.recover import recover

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)
app.command()(plan)
app.command()(pairs)
app.command()(chat)
app.command()(recover)
app.command(name="summary")(print_summary)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tangram {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Turn a trained decoder LLM into a faster child: plan a run, recover and sum it up, chat with a child."""


def main() -> None:
    """Run the command."""
    run_app(app)


if __name__ == "__main__":
    main()
