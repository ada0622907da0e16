"""The command line: every command by its name, in the order in which data flows.

A command is one thin function in the file of its kind, which imports its room when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from liuli.cli import data, learn, use
from liuli.errors import LiuliError

app = typer.Typer(
    name="liuli",
    help="Liuli 琉璃: build, use and see through a ChatGPT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
Command = Callable[..., None]
GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "data": (
        "Look at text, clean it, remove duplicates, turn it into rows.",
        {"stats": data.stats, "clean": data.clean, "dedup": data.dedup, "rows": data.rows, "mask": data.mask},
    ),
    "curriculum": (
        "The built-in classroom: make its data, look at it.",
        {"make": data.make, "show": data.show},
    ),
    "keys": (
        "Who may use a server: make keys, list them, remove them.",
        {"add": use.add_key, "list": use.list_keys, "remove": use.remove_key},
    ),
    "bench": ("Measure.", {"serve": use.bench_serve}),
}
COMMANDS: dict[str, Command] = {
    "tokenizer": data.tokenizer,
    "eval": use.eval_,
    "chat": use.chat,
    "serve": use.serve,
    "plan": learn.plan,
    "pretrain": learn.pretrain,
    "sft": learn.sft,
    "reward": learn.reward,
    "ppo": learn.ppo,
    "grpo": learn.grpo,
    "best": learn.best,
    "dpo": learn.dpo,
    "export": learn.export,
    "import": learn.import_,
    "label": use.label,
    "build": learn.build,
}
for group, (about, commands) in GROUPS.items():
    part = typer.Typer(no_args_is_help=True, help=about)
    app.add_typer(part, name=group)
    for name, command in commands.items():
        part.command(name)(command)
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.callback()
def root() -> None:
    """Liuli 琉璃: build, use and see through a ChatGPT."""


def main() -> None:
    """Run a command; an error the user can act on is one message and exit code 1 or 2, never a traceback."""
    # An idle thread spins for some microseconds, then sleeps. Spinning on and on, two torch programs on the same cores
    # (a build and its page) stall one another tenfold; without spinning a training step takes 30% longer. Between the
    # small products of a step that writes lies more Python: whoever sleeps there is woken too late (all measured).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000" if sys.argv[1:2] in (["serve"], ["chat"]) else "1000")
    try:
        app(standalone_mode=True)
    except LiuliError as error:
        print(f"liuli: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
