"""The command line: one thin function per command; each imports its room when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
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


@app.command("eval")
def eval_(
    model: Annotated[Path, typer.Argument(help="A model folder, for example runs/laptop/chat.")],
    curriculum: Annotated[
        Path | None, typer.Option(help="Folder with the questions (eval.jsonl). Default: that of the model's run.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Held-out text for bits per byte: a file or folder; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each skill, language and split.")] = None,
    seconds: Annotated[float | None, typer.Option(min=1, help="Stop asking in time for this many seconds in all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for eval.json. Default: the model's run, or here.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps. Default: the fastest there is.")] = None,
    json: Json = False,
) -> None:
    """How good a model is: bits per byte, skills with intervals, manners, memory and speed.

    Example: liuli eval runs/laptop/chat --text held-out.txt --limit 20
    """
    from liuli.evals import eval_with_progress

    eval_with_progress(model, curriculum, text or [], limit, seconds, out, device, json)


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(help="A model folder, or a run folder, also one that is still training.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8365,
) -> None:
    """Open a model as a web page and as an OpenAI-compatible API.

    Example: liuli serve runs/laptop
    """
    from liuli import server

    server.serve(path, host=host, port=port, ready=lambda url: print(f"Liuli: {url}  (Ctrl-C stops it)", flush=True))


def main() -> None:
    """Run a command; an error the user can act on is one message and exit code 1 or 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except LiuliError as error:
        print(f"liuli: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
