"""The one training loop. A stage gives it a model, rows and an objective; it makes the weights better.

Promises: a run that is killed at any moment and started again ends in the same weights, bit for bit, on the CPU; a step
with a non-finite loss or gradient changes nothing, and three in a row go back to the last checkpoint. Ctrl-C ends a run
between two steps and loses none. Several processes (train/parallel.py) take the step that one would take: each has its
rows of the batch, the first alone looks at the clock and at checkpoints.
"""

from __future__ import annotations

import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from liuli.errors import LiuliError
from liuli.model import Transformer, flops_per_token
from liuli.text import Batch, Loader
from liuli.train.checkpoint import load_checkpoint, save_checkpoint
from liuli.train.log import RunLog
from liuli.train.loss import Objective, TensorBatch, compiled
from liuli.train.machine import Machine, keep_freed_memory
from liuli.train.optimizer import Optimizer, grad_norm
from liuli.train.pace import Pace, schedule
from liuli.train.parallel import from_first, load_gathered, ranks, state_of, summed

BAD_STEPS_ALLOWED = 2  # non-finite steps in a row that are only skipped; one more rolls back
ROLL_BACKS_ALLOWED = 2  # to one checkpoint: what three tries do not pass, a fourth does not either


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs; what it computes does not depend on the three intervals."""

    micro_rows: int = 0  # rows of one forward pass; 0: the whole batch at once
    compile: bool = False  # torch.compile the objective
    warmup: float = 0.02  # share of the run in which learning rates rise
    decay: float = 0.6  # share of the run in which they fall
    floor: float = 0.05  # what remains of them at the end
    save_every_s: float = 60.0  # seconds between checkpoints
    save_every_steps: int = 0  # steps between checkpoints; 0: by seconds alone
    snapshot_every_s: float = 30.0  # seconds between calls of on_snapshot
    figures_every_steps: int = 5  # steps between lines of log.jsonl


@dataclass(frozen=True)
class FitResult:
    """What a run came to."""

    steps: int
    tokens: int
    seconds: float
    loss: float  # nats a target token, mean of the last steps
    bpb: float  # bits per byte of the targets, likewise
    tokens_per_s: float
    peak_share: float
    skipped: int


class Training:
    """The state of one run: everything that a checkpoint holds, and how to take one step."""

    def __init__(
        self,
        model: Transformer,
        optimizer: Optimizer,
        loader: Loader,
        objective: Objective,
        pace: Pace,
        options: LoopOptions,
        machine: Machine,
        bos: int | None,
        bytes_per_id: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.model, self.optimizer, self.loader, self.pace = model, optimizer, loader, pace
        self.options, self.machine, self.bos, self.window = options, machine, bos, Window(bytes_per_id)
        self.objective = compiled(objective) if options.compile else objective
        self.step = self.tokens = self.skipped = self.bad_in_a_row = 0
        self.rolled_back: list[int] = []  # the checkpoints that this start went back to

    def state(self) -> dict[str, Any]:
        return state_of(self.model, self.optimizer) | {
            "rng": {
                "torch": torch.get_rng_state(),
                "device": _device_state(self.machine.device),
                "numpy": np.random.get_state(),
                "python": random.getstate(),
            },
            "position": self.loader.position,
            "pace": self.pace.state(),
            "counts": [self.step, self.tokens, self.skipped, self.bad_in_a_row],
            "window": self.window.recent(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        load_gathered(self.model, self.optimizer, state)
        torch.set_rng_state(state["rng"]["torch"])
        _set_device_state(self.machine.device, state["rng"].get("device"))
        np.random.set_state(state["rng"]["numpy"])
        random.setstate(state["rng"]["python"])
        self.loader.position = state["position"]
        self.pace.load_state(state["pace"])
        self.step, self.tokens, self.skipped, self.bad_in_a_row = state["counts"]
        self.window.before = state.get("window", [])

    def take_step(self) -> tuple[float, float, float]:
        """One optimizer step: mean loss (nats a target), number of targets, gradient norm (inf: skipped)."""
        batch = next(self.loader)
        (targets,) = summed(float(batch.weights_BT.sum()))
        rows = len(batch.tokens_BT)
        micro = self.options.micro_rows or rows
        total = 0.0
        for start in range(0, rows, micro):
            part = to_tensors(batch, slice(start, start + micro), self.machine.device, self.bos)
            loss = self.objective(self.model, part) / targets
            # of the mean over processes that sharding takes, the sum is wanted
            (loss * ranks()).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        total, square = summed(total, grad_norm(self.model).item() ** 2)
        norm = math.sqrt(square)
        if math.isfinite(total) and math.isfinite(norm):
            o = self.options
            self.optimizer.step(schedule(self.pace.progress, o.warmup, o.decay, o.floor))
            self.bad_in_a_row = 0
        else:
            self.skipped += 1
            self.bad_in_a_row += 1
            norm = math.inf
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += batch.tokens_BT.size * ranks()
        self.last_batch = batch
        return total, targets, norm

    def peak_share(self, tokens_per_s: float) -> float:
        """Of the matmul rate of all processes, what the model's FLOPs come to at this speed."""
        flops = flops_per_token(self.model.config, self.loader.rows.T)["model"]
        return tokens_per_s * flops / self.machine.rate / ranks()


def fit(
    model: Transformer,
    optimizer: Optimizer,
    loader: Loader,
    objective: Objective,
    pace: Pace,
    *,
    log: RunLog,
    machine: Machine,
    options: LoopOptions,
    checkpoints: Path | None = None,
    bos: int | None = None,
    bytes_per_id: np.ndarray[Any, Any] | None = None,
    on_snapshot: Callable[[int], None] | None = None,
) -> FitResult:
    """Train until the pace says that the budget is used; continue from `checkpoints` if there is something there.

    bos: the token that begins a document; given it, tokens see their own document only. bytes_per_id: bytes of each
    token, for bits per byte. on_snapshot(step): called now and then with the model in eval mode; it must not touch the
    random state.
    Raises KeyboardInterrupt on Ctrl-C, after the step and with a checkpoint; LiuliError if the loss stays non-finite.
    """
    keep_freed_memory()
    # compiled kernels on several threads repeat bit for bit only in this mode (measured); eager ones always do
    torch.use_deterministic_algorithms(options.compile and machine.device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    run = Training(model, optimizer, loader, objective, pace, options, machine, bos, bytes_per_id)
    window = run.window
    if checkpoints is not None:
        found = from_first(load_checkpoint, checkpoints, log.warn)
        if found is not None:
            run.load_state(found[1])
            log.event("continued from checkpoint", step=run.step)
            log.say(f"continuing from step {run.step}")
    model.train()
    stepped = saved = shown = time.monotonic()

    def now(finite: bool) -> tuple[bool, bool, bool]:
        """Whether to take a snapshot, to save, to stop."""
        stop = stopping.is_set()
        snapshot = on_snapshot is not None and time.monotonic() - shown > options.snapshot_every_s
        # no checkpoint after a bad step: it would be a new place to go back to, for ever, from a loss never finite
        save = checkpoints is not None and (stop or (finite and due(run.step, saved, options)))
        return snapshot, save, stop

    with patient() as stopping:
        while pace.progress < 1.0:
            loss, targets, norm = run.take_step()
            pace.progress = from_first(pace.advance, run.step)
            window.add(loss, targets, run.last_batch, time.monotonic() - stepped)
            stepped = time.monotonic()
            if run.bad_in_a_row > BAD_STEPS_ALLOWED:
                roll_back(run, checkpoints, log)
            if run.step % options.figures_every_steps == 0 or pace.progress >= 1.0:
                report(run, norm, log)
            snapshot, save, stop = from_first(now, math.isfinite(norm))
            if snapshot and on_snapshot is not None:
                model.eval()
                on_snapshot(run.step)
                model.train()
                shown = time.monotonic()
            if save:
                from_first(save_checkpoint, checkpoints, run.step, run.state())
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    model.eval()
    rate = window.tokens_per_s(0)
    return FitResult(
        steps=run.step,
        tokens=run.tokens,
        seconds=pace.seconds_spent(),
        loss=window.loss(),
        bpb=window.bpb(),
        tokens_per_s=rate,
        peak_share=run.peak_share(rate),
        skipped=run.skipped,
    )


def report(run: Training, norm: float, log: RunLog) -> None:
    """The figures of the last steps, to the bar, the page and log.jsonl."""
    pace, o, window = run.pace, run.options, run.window
    rate = window.tokens_per_s()
    figures = {"loss": window.loss(), "bpb": window.bpb(), "tokens_per_s": rate, "peak_share": run.peak_share(rate)}
    log.progress(pace.progress, pace.seconds_left(), step=run.step, **figures)
    log.figures(
        step=run.step,
        progress=pace.progress,
        tokens=run.tokens,
        **figures,
        grad_norm=norm if math.isfinite(norm) else None,
        lr=schedule(pace.progress, o.warmup, o.decay, o.floor),
    )


@contextmanager
def patient() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, since in the middle of a step nothing whole can be saved; a second one
    interrupts at once."""
    stopping, before = threading.Event(), signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    if not is_main or before is not signal.default_int_handler:  # ignored (nohup), or someone else's
        yield stopping
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


def due(step: int, saved: float, options: LoopOptions) -> bool:
    """Is a checkpoint due: by steps, or by the clock."""
    if options.save_every_steps:
        return step % options.save_every_steps == 0
    return time.monotonic() - saved > options.save_every_s


def roll_back(run: Training, checkpoints: Path | None, log: RunLog) -> None:
    """Weights and optimizer of the last checkpoint; the data goes on from here, so the bad rows are left behind."""
    found = from_first(load_checkpoint, checkpoints, log.warn) if checkpoints is not None else None
    if found is None or run.rolled_back.count(found[0]) >= ROLL_BACKS_ALLOWED:
        why = (
            "there is no checkpoint to go back to" if found is None else f"going back to step {found[0]} does not help"
        )
        raise LiuliError(
            f"the loss is not finite for {run.bad_in_a_row} steps in a row, and {why}",
            f"step {run.step}",
            "lower the learning rates (matrix_lr, head_lr, embedding_lr, adam_lr)",
        )
    run.rolled_back.append(found[0])
    log.event("rolled back", step=run.step, to=found[0])
    load_gathered(run.model, run.optimizer, found[1])
    run.bad_in_a_row = 0


def to_tensors(batch: Batch, part: slice, device: str, bos: int | None) -> TensorBatch:
    """Rows `part` of a batch on the device; with bos given, each token knows its document."""
    tokens = torch.from_numpy(batch.tokens_BT[part]).to(device)
    documents = (tokens == bos).cumsum(1) if bos is not None else None
    return TensorBatch(
        tokens,
        torch.from_numpy(batch.targets_BT[part]).to(device),
        torch.from_numpy(batch.weights_BT[part]).to(device),
        documents,
    )


class Window:
    """Means over the last steps, each step weighted by its target tokens."""

    LENGTH = 20

    def __init__(self, bytes_per_id: np.ndarray[Any, Any] | None) -> None:
        self.bytes_per_id = bytes_per_id
        self.steps: list[tuple[float, ...]] = []
        self.before: list[tuple[float, ...]] = []  # the last ones of the run that this one goes on from

    def add(self, loss: float, targets: float, batch: Batch, seconds: float) -> None:
        count = 0.0
        if self.bytes_per_id is not None:
            (count,) = summed(float((self.bytes_per_id[batch.targets_BT] * batch.weights_BT).sum()))
        self.steps.append((loss * targets, targets, count, batch.tokens_BT.size * ranks(), seconds))

    def recent(self) -> list[tuple[float, ...]]:
        return [*self.before, *self.steps[-self.LENGTH :]][-self.LENGTH :]

    def _sums(self) -> tuple[float, float, float]:
        finite = [step for step in self.recent() if math.isfinite(step[0])]
        return sum(s[0] for s in finite), sum(s[1] for s in finite), sum(s[2] for s in finite)

    def loss(self) -> float:
        nats, targets, _ = self._sums()
        return nats / targets if targets else math.nan

    def bpb(self) -> float:
        nats, _, count = self._sums()
        return nats / math.log(2) / count if count else math.nan

    def tokens_per_s(self, last: int = LENGTH) -> float:
        """Over the last steps; 0: over all."""
        recent = self.steps[1:][-last:] or self.steps or self.before  # the first step may compile
        return sum(s[3] for s in recent) / max(sum(s[4] for s in recent), 1e-9)


def _device_state(device: str) -> torch.Tensor | None:
    """The random state of an accelerator, from which its dropout draws; None on the CPU."""
    if device == "cpu":
        return None
    state: torch.Tensor = torch.get_device_module(device).get_rng_state()
    return state


def _set_device_state(device: str, state: torch.Tensor | None) -> None:
    if device != "cpu" and state is not None:  # None: the run was begun on the CPU
        torch.get_device_module(device).set_rng_state(state)
