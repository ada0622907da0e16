"""What the commands that train do around the stages: options, progress, the page beside a build."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import torch

from liuli.build import build
from liuli.engine import Model
from liuli.errors import LiuliError, UsageError
from liuli.evals import read_held_out
from liuli.evals.bits import bits_by_language
from liuli.files import lock
from liuli.folder import context_in, read_model_folder
from liuli.material import tell_skipped, tell_too_long
from liuli.plan import make_plan
from liuli.recipe import Recipe, options_of, read_recipe
from liuli.stages.pretrain import Shape, pretrain
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions, begun_with, checkpoints_of
from liuli.text import ReadReport, Rows, Tokenizer, pack_conversations, read_conversations
from liuli.text.commands import render_in_turn
from liuli.train import FitResult, RunLog, StageState
from liuli.train.parallel import from_first, join, leave, rank

STOPPED = "\nStopped. The same command goes on where this one was."


def pretrain_here(
    rows: Path,
    tokenizer: Path,
    out: Path,
    preset: str,
    depth: int,
    width: int,
    budget: dict[str, float | None],
    changes: Sequence[str],
    quiet: bool,
) -> None:
    """`liuli pretrain`."""
    options = options_of(TrainOptions, budget, changes)
    with own_run(out, "pretraining", quiet, (rows, tokenizer)) as log:
        begun = begun_with(checkpoints_of(log.folder, out.name))
        shape = from_first(choose_shape, rows, tokenizer, Shape(preset, depth, width), options, begun)
        finish(log, out, pretrain(rows, tokenizer, out, shape=shape, options=options, log=log))


def choose_shape(rows: Path, tokenizer: Path, asked: Shape, options: TrainOptions, begun: dict[str, Any]) -> Shape:
    """What is not asked (0) is as the run was begun, for a second measurement may choose another; else by the plan."""
    depth, width = asked.layers or begun.get("layers", 0), asked.width or begun.get("width", 0)
    if not (depth and width):
        minutes = options.minutes or 5.0
        plan = make_plan(
            minutes,
            preset=asked.preset,
            context=Rows.open(rows).T,
            vocab_size=Tokenizer.load(tokenizer).vocab_size,
            layers=depth or None,
            width=width or None,
            batch_tokens=options.batch_tokens,
            kind="text",
            probe_seconds=2.0,
        )
        depth, width = plan.layers, plan.width
    return Shape(asked.preset, depth, width)


def sft_here(
    model: Path,
    data: Path,
    out: Path,
    budget: dict[str, float | None],
    changes: Sequence[str],
    skip_bad: bool,
    quiet: bool,
    replay: Path | None = None,
) -> None:
    """`liuli sft`: conversations are packed into rows first, beside the output."""
    options = options_of(TrainOptions, budget, changes)
    config = read_model_folder(model)
    with own_run(out, "fine-tuning", quiet, (model, data, replay)) as log:
        rows = data
        if not (data / "index.json").exists():
            folder = log.folder / f"{out.name}-rows"
            rows, read = from_first(packed, data, model, context_of(config.config), folder, skip_bad)
            tell_skipped(read, log)
            info = Rows.open(rows).info
            tell_too_long(info.left_out, info.shortened, info.T, log)
        result = sft(model, rows, out, options=options, log=log, replay=replay)
        tell_forgotten(model, out, log)
        finish(log, out, result)


def packed(data: Path, model: Path, T: int, rows: Path, skip_bad: bool) -> tuple[Path, ReadReport]:
    """Conversations as rows of T tokens, in the folder `rows`."""
    tokenizer, read = Tokenizer.load(model), ReadReport()
    rendered = render_in_turn(read_conversations([data], skip_bad, read), tokenizer)
    pack_conversations(rendered, T, rows, vocab_size=tokenizer.vocab_size, replace=True)
    return rows, read


def tell_forgotten(model: Path, out: Path, log: RunLog) -> None:
    """What tuning made a model forget: bits per byte of text that its run held out, before and after."""
    texts = held_out_of(model)
    if texts is None or rank():
        return
    known = read_held_out(texts)
    bits = {}
    for name, folder in (("bits_before", model), ("bits_after", out)):
        own = Model(folder)
        found = bits_by_language(own.transformer, own.tokenizer, known, context=own.engine.context, seconds=5)
        bits[name] = float(found.get("all", next(iter(found.values())))["per_byte"])
    log.figures(**bits)
    log.say(f"what it forgot: {bits['bits_before']:.3f} bits per byte before, {bits['bits_after']:.3f} after ({texts})")


def held_out_of(model: Path) -> Path | None:
    """The held-out text of the run that a model, or a model that it comes from, was built in."""
    for _ in range(16):  # generations
        texts = model.resolve().parent / "rows" / "held_out.jsonl"
        if texts.exists():
            return texts
        parent = read_model_folder(model, verify=False).provenance.get("parent")
        if not parent or not Path(parent).is_dir():
            return None
        model = Path(parent)
    return None


def context_of(config: dict[str, Any]) -> int:
    """Tokens a row may have: the model's context, at most 2,048."""
    return min(2048, context_in(config) or 2048)


def demand_one_process(title: str) -> None:
    """UsageError where torchrun started several: each would do the whole of it."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"{title} is done in one process", "torchrun", "start it without torchrun")


@contextmanager
def own_run(
    out: Path, title: str, quiet: bool, inputs: Sequence[Path | None] = (), divided: bool = True
) -> Iterator[RunLog]:
    """The run of a stage by itself, in the parent of what it writes. Its log begins once the folder is locked, so that
    a refused second process leaves the first one's alone, and says how the stage ended. UsageError where `out` is one
    of the inputs or holds something, unless an unfinished run of its name goes on.

    divided: the stage shares its work out among the processes that torchrun starts; the first writes.
    """
    if out.resolve() in {given.resolve() for given in inputs if given is not None}:
        raise UsageError("What is read cannot be written over", out, "choose another name for what is made")
    unfinished = checkpoints_of(out.resolve().parent, out.name).exists()
    if out.exists() and not unfinished and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError("This exists already", out, "choose another name, or remove it first")
    rank, ranks = join("cuda" if torch.cuda.is_available() else "cpu") if divided else (0, 1)
    if not divided:
        demand_one_process(title)
    if rank > 0:
        with tempfile.TemporaryDirectory() as aside:  # one diary is enough
            log = RunLog(Path(aside), [StageState(out.name, title)], quiet=True, tensorboard=False)
            log.begin(out.name)
            yield log
        leave()
    log = RunLog(out.resolve().parent, [StageState(out.name, title)], quiet)
    with lock(log.folder):
        log.begin(out.name)
        try:
            yield log
        except KeyboardInterrupt:
            log.end("stopped", "stopped by hand; the same command goes on")
            print(STOPPED, file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None  # so that a script does not take this for a success
        except BaseException as error:
            log.end("failed", str(error))
            raise
    if ranks > 1:
        leave()


def finish(log: RunLog, out: Path, result: FitResult) -> None:
    end(
        log,
        f"{out}: {result.steps} steps, {result.tokens / 1e6:.2f}M tokens in {result.seconds:.0f} s, "
        f"{result.bpb:.3f} bits per byte, {result.peak_share:.0%} of the matmul peak",
    )


def end(log: RunLog, text: str) -> None:
    """A stage by itself is over: say what came of it."""
    log.finish()
    log.end("done")
    log.say(text)


def build_here(
    path: Path,
    changes: Sequence[str],
    minutes: float | None,
    text: Sequence[str],
    chats: Sequence[str],
    out: Path | None,
    serve: bool,
    port: int,
    skip_bad: bool,
    quiet: bool,
) -> None:
    """`liuli build`, with the page beside it if asked."""
    demand_one_process("A build")
    budget = [f"minutes={minutes}"] if minutes is not None else []  # checked with the rest: no build of -1, nan or inf
    recipe: Recipe = read_recipe(path, [*changes, *budget])
    texts, talks = tuple(text) or recipe.text, tuple(chats) or recipe.chats
    recipe = replace(recipe, text=texts, chats=talks, skip_bad=skip_bad or recipe.skip_bad)
    run = out or Path("runs") / recipe.name
    page = open_page(run, port) if serve else None
    try:
        build(recipe, run, quiet=quiet)
        if page is not None:
            print("The model is ready. Ctrl-C ends the page.", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                page.wait()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        if page is not None:
            page.terminate()


def open_page(run: Path, port: int) -> subprocess.Popen[bytes]:
    """Start `liuli serve` on the run folder in a process of its own and open a browser on it."""
    try:
        # a port that is taken is told before anything is written; 0 is any that is free
        with socket.create_server(("127.0.0.1", port)) as free:
            port = free.getsockname()[1]
    except OSError:
        raise LiuliError(f"port {port} is already taken", "--serve", "choose another with --port") from None
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "liuli", "serve", str(run), "--port", str(port), "--ends-with-input"]
    page = subprocess.Popen(command, stdin=subprocess.PIPE)  # a build that is killed takes the page with it
    while page.poll() is None:
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=30)) as line:
            line.request("GET", "/health")
            line.getresponse()  # not sooner: the port is open while it starts, and a build times the machine next
            webbrowser.open(f"http://127.0.0.1:{port}")
            return page
        time.sleep(0.1)
    raise LiuliError("the page could not be opened (see above)", f"port {port}", "choose another with --port")
