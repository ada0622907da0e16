"""What a run says while it works: figures to log.jsonl and TensorBoard, state to status.json, a bar to the terminal.

One `RunLog` serves all stages of a run; the web page and the report read the files it writes (docs/design.md, "Run
folder").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from liuli.files import append_line, clear_errors, make_folder, write_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STATUS_EVERY = 1.0  # seconds between two writings of status.json


@dataclass
class StageState:
    """One stage as the page shows it. share: its part of the whole run's time."""

    name: str
    title: str
    share: float = 1.0
    state: str = "waiting"  # waiting running done failed
    seconds: float = 0.0


@dataclass
class RunLog:
    """folder: the run folder. quiet: no bar on the terminal. tensorboard: write event files to folder/tensorboard."""

    folder: Path
    stages: Sequence[StageState]
    quiet: bool = False
    tensorboard: bool = True
    status: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder)
        with clear_errors(self.folder):
            make_folder(self.folder)
        self.console = Console(stderr=True, quiet=self.quiet)
        self._written = self._begun = 0.0
        self._fraction = 0.0
        self._current: StageState | None = None
        self._bar: Progress | None = None
        self._board: SummaryWriter | None = None

    # --- stages ------------------------------------------------------------------------------------------------------

    def begin(self, name: str) -> None:
        """A stage starts; unknown names are added at the end."""
        known = {stage.name: stage for stage in self.stages}
        if name not in known:
            known[name] = StageState(name, name)
            self.stages = [*self.stages, known[name]]
        self._current = known[name]
        self._current.state = "running"
        self._begun, self._fraction = time.monotonic(), 0.0
        self.status = {"stage": name}
        self._open_bar(self._current.title)
        self.event(f"{name} started")
        self._write("running", now=True)

    def finish(self, state: str = "done") -> None:
        """The current stage ended; state: done or failed."""
        if self._current is None:
            return
        self._current.state = state
        self._current.seconds = round(time.monotonic() - self._begun, 2)
        self._close_bar()
        self.event(f"{self._current.name} {state}", seconds=self._current.seconds)
        self._fraction = 1.0
        self._write("running" if state == "done" else "failed", now=True)
        self._current = None

    def skip(self, name: str, seconds: float = 0.0) -> None:
        """A stage is already there from an earlier start, which spent so many seconds on it."""
        for stage in self.stages:
            if stage.name == name:
                stage.state, stage.seconds = "done", seconds

    def end(self, state: str, message: str = "") -> None:
        """The run ended: done, failed or stopped."""
        self._close_bar()
        if state != "done" and self._current is not None:
            self._current.state = "failed" if state == "failed" else "waiting"
        self.status["message"] = message
        self.event(f"run {state}", message=message)
        self._write(state, now=True)
        if self._board is not None:
            self._board.close()

    # --- within a stage ----------------------------------------------------------------------------------------------

    def progress(self, fraction: float, seconds_left: float | None = None, **figures: Any) -> None:
        """Where the current stage is: fraction in [0, 1]; figures are shown on the bar and the page."""
        self._fraction = min(1.0, max(0.0, fraction))
        self.status |= {"seconds_left_in_stage": seconds_left} | figures
        if self._bar is not None:
            shown = "  ".join(_short(key, value) for key, value in figures.items() if value is not None)
            self._bar.update(self._bar.task_ids[0], completed=self._fraction, shown=shown, left=_clock(seconds_left))
        self._write("running")

    def figures(self, **values: Any) -> None:
        """One line of log.jsonl; numbers go to TensorBoard too."""
        stage = self._current.name if self._current else None
        append_line(self.folder / "log.jsonl", {"time": time.time(), "stage": stage} | values)
        if self.tensorboard and "step" in values:
            board = self._open_board()
            for key, value in values.items():
                if isinstance(value, int | float) and key != "step":
                    board.add_scalar(f"{stage}/{key}", value, values["step"])

    def warn(self, text: str) -> None:
        """Something that the person should know, though work goes on."""
        self.event("warning", message=text)
        self.console.print(text, style="yellow", markup=False)  # a path or a row may hold [brackets]

    def event(self, what: str, **values: Any) -> None:
        stage = self._current.name if self._current else None
        append_line(self.folder / "log.jsonl", {"time": time.time(), "stage": stage, "event": what} | values)

    def say(self, text: str) -> None:
        """A line for the person at the terminal."""
        self.console.print(text, markup=False)

    def samples(self, step: int, answers: Sequence[dict[str, Any]]) -> None:
        """What the newest snapshot answers to the fixed prompts."""
        stage = self._current.name if self._current else None
        line = {"time": time.time(), "stage": stage, "step": step, "progress": self.overall(), "answers": list(answers)}
        append_line(self.folder / "samples.jsonl", line)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def overall(self) -> float:
        """Progress of the whole run in [0, 1], by the stages' shares of time."""
        whole = sum(stage.share for stage in self.stages) or 1.0
        done = sum(stage.share for stage in self.stages if stage.state == "done")
        running = self._current.share * self._fraction if self._current and self._current.state == "running" else 0.0
        return min(1.0, (done + running) / whole)

    def _write(self, state: str, now: bool = False) -> None:
        if not now and time.monotonic() - self._written < STATUS_EVERY:
            return
        self._written = time.monotonic()
        if self._current is not None:
            self._current.seconds = round(time.monotonic() - self._begun, 2)
        left = self.status.get("seconds_left_in_stage")
        later = sum(stage.share for stage in self.stages if stage.state == "waiting")
        if left is not None and self._current is not None and self._current.share:
            spent = self._current.seconds + left
            left = left + later * spent / self._current.share
        status = dict(self.status) | {
            "state": state,
            "stages": [asdict(stage) for stage in self.stages],
            "progress": 1.0 if state == "done" else round(self.overall(), 4),
            "seconds_left": 0.0 if state == "done" else left,
            "updated": time.time(),
        }
        write_json(self.folder / "status.json", status, durable=False)

    def _open_bar(self, title: str) -> None:
        if self.quiet:
            return
        columns = (
            TextColumn("[bold cyan]{task.description:<12}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}  {task.fields[shown]}"),
        )
        self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
        self._bar.add_task(title, total=1.0, shown="", left="–")
        self._bar.start()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open_board(self) -> SummaryWriter:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        return self._board


def _short(key: str, value: Any) -> str:
    if key == "peak_share":
        return f"{value:.0%} of peak"
    text = f"{value:.3f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"
    return f"{text} tok/s" if key == "tokens_per_s" else f"{key} {text}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def tell_left_out(count: int, what: str, warn: Callable[[str], None]) -> None:
    """How many of what (in the plural) do not fit, if any."""
    if count:
        warn(f"{count:,} {what if count > 1 else what[:-1]} too long for the context, left out")
