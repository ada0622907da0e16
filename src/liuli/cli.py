"""The command line: one thin function per command; each imports its room when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from liuli.errors import LiuliError

app = typer.Typer(
    name="liuli",
    help="Liuli 琉璃: build, use and see through a ChatGPT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at text, clean it, remove duplicates, turn it into rows.")
curriculum_app = typer.Typer(no_args_is_help=True, help="The built-in classroom: make its data, look at it.")
app.add_typer(data_app, name="data")
app.add_typer(curriculum_app, name="curriculum")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text for people.")]


@app.callback()
def root() -> None:
    """Liuli 琉璃: build, use and see through a ChatGPT."""


# --- commands, in the order in which data flows ----------------------------------------------------------------------


def main() -> None:
    """Run a command; an error the user can act on is one message and exit code 1 or 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except LiuliError as error:
        print(f"liuli: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
