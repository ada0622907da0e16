"""What a run folder shows: its state, its curve, its samples, and the newest model in it.

In: a run folder that another process is writing (docs/design.md, "Run folder"). Out: plain values for the page. It only
reads, it never locks, and it takes a half-written last line or a missing file for "not yet".
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liuli.assistant import default_store
from liuli.errors import UsageError
from liuli.folder import context_in

POINTS_AT_MOST = 300  # of one stage's curve; a chart is about as many pixels wide
SAMPLES_AT_MOST = 60


@dataclass(frozen=True)
class ModelFile:
    """A model folder to be served: where it is, which stage made it, whether that stage was over, and how many tokens
    the model reads, where that is known."""

    path: Path
    stage: str
    step: int
    finished: bool
    made: float
    context: int | None = None

    def about(self) -> dict[str, Any]:
        """What the page says of it: its folder's name, stage, step, when it was made, how many tokens it reads."""
        return {
            "name": self.path.name,
            "stage": self.stage,
            "step": self.step,
            "finished": self.finished,
            "made": self.made,
            "context": self.context,
        }


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def is_model_folder(path: Path) -> bool:
    """Whether `path` looks like a whole model folder (they appear by one rename)."""
    return all((path / name).is_file() for name in MODEL_FILES)


def is_run_folder(path: Path) -> bool:
    """Whether `path` looks like what `liuli build` makes, or is an empty folder where one may begin any moment."""
    if not path.is_dir():
        return False
    names = {child.name for child in path.iterdir() if not child.name.startswith(".")}
    return not names or bool(names & {"status.json", "recipe.toml", "plan.json", "snapshots", "log.jsonl"})


def run_of(path: Path) -> Path | None:
    """The run folder that `path` is or lies in (a stage's model, a snapshot); None for a model from elsewhere."""
    if not is_model_folder(path):
        return path
    parent = path.resolve().parent
    run = parent.parent if parent.name == "snapshots" else parent
    return run if is_run_folder(run) else None


def store_of(path: Path, named: str | Path | None) -> str | Path | None:
    """Where the keys, chats and judgements of `path` are kept: as named, else in its run folder, if it lies in one."""
    run = run_of(path)
    return named or (default_store(run) if run else None)


def check_servable(path: Path) -> None:
    """Raises UsageError unless `path` is a model folder or a run folder."""
    if not path.exists():
        raise UsageError("There is no such model folder or run folder.", path, "Make one with `liuli build`.")
    if is_model_folder(path) or is_run_folder(path):
        return
    lacks = [name for name in MODEL_FILES if not (path / name).is_file()]
    if len(lacks) < len(MODEL_FILES):
        raise UsageError(f"This model folder lacks {' and '.join(lacks)}.", path, "Copy or make the model again.")
    fix = f"A model folder has {', '.join(MODEL_FILES)}; `liuli build` makes a run folder."
    raise UsageError("This is neither a model folder nor a run folder.", path, fix)


def models_in(run: Path) -> list[ModelFile]:
    """Every model of a run, the best one to talk to first.

    A later stage goes before an earlier one, a finished stage before its snapshots, a later snapshot before an earlier.
    """
    stages = [str(stage.get("name")) for stage in (read_json(run / "status.json") or {}).get("stages", [])]
    order = {name: place for place, name in enumerate(stages)}
    found = [_model(path, path.name, 0, True) for path in folders_in(run) if is_model_folder(path)]
    for path in folders_in(run / "snapshots"):
        stage, _, step = path.name.rpartition("-")
        if step.isdigit() and is_model_folder(path):
            found.append(_model(path, stage, int(step), False))
    return sorted(filter(None, found), key=lambda m: (order.get(m.stage, -1), m.finished, m.step, m.made), reverse=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none yet."""
    try:
        return _object(path.read_bytes())
    except OSError:
        return None


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder, but hidden ones."""
    try:
        return [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    except OSError:
        return []


def _model(path: Path, stage: str, step: int, finished: bool) -> ModelFile | None:
    """A model that writes words; None for one that gives scores, or was pruned in this moment."""
    try:
        made = (path / "config.json").stat().st_mtime
    except OSError:
        return None
    config = read_json(path / "config.json") or {}
    if "score_offsets" in config:
        return None
    return ModelFile(path, stage, step, finished, made, context_in(config))


@dataclass
class LineReader:
    """Reads what was added to a JSON-lines file since the last time; a torn last line waits until it is whole."""

    path: Path
    offset: int = 0
    inode: int = 0

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The new lines, and whether the file began anew (then all earlier ones are void)."""
        try:
            with open(self.path, "rb") as file:
                about = self.path.stat()
                anew = about.st_size < self.offset or (self.inode != 0 and about.st_ino != self.inode)
                self.inode = about.st_ino
                if anew:
                    self.offset = 0
                file.seek(self.offset)
                new = file.read()
        except OSError:
            return [], False
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [value for line in whole.splitlines() if (value := _object(line)) is not None], anew


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


@dataclass
class Curve:
    """One stage's figures, thinned to at most twice POINTS_AT_MOST while they come and to POINTS_AT_MOST when shown."""

    points: list[dict[str, float | None]] = field(default_factory=list)
    every: int = 1
    seen: int = 0

    def add(self, line: dict[str, Any]) -> None:
        if self.seen % self.every == 0:
            keys = ("time", "step", "progress", "loss", "bpb", "tokens", "tokens_per_s")
            self.points.append({key: _number(line.get(key)) for key in keys})
        self.seen += 1
        if len(self.points) >= 2 * POINTS_AT_MOST:
            self.points, self.every = self.points[::2], self.every * 2

    def shown(self) -> list[dict[str, float | None]]:
        """At most POINTS_AT_MOST points, the last one always among them."""
        return thin(self.points, POINTS_AT_MOST)


def thin(items: list[Any], at_most: int) -> list[Any]:
    """Evenly chosen items, first and last included."""
    if len(items) <= at_most:
        return items
    return [items[round(i * (len(items) - 1) / (at_most - 1))] for i in range(at_most)]


class RunReader:
    """Follows one run folder; `read` costs only what was added since the last call."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._log = LineReader(run / "log.jsonl")
        self._samples = LineReader(run / "samples.jsonl")
        self._curves: dict[str, Curve] = {}
        self._answers: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        """{"status", "curves": [{"stage", "points"}], "samples", "report"} as they are now."""
        lines, anew = self._log.read()
        if anew:
            self._curves.clear()
        for line in lines:
            if "event" not in line and _number(line.get("loss")) is not None:
                self._curves.setdefault(str(line.get("stage", "")), Curve()).add(line)
        samples, anew = self._samples.read()
        self._answers = ([] if anew else self._answers) + [s for s in samples if isinstance(s.get("answers"), list)]
        return {
            "status": read_json(self.run / "status.json"),
            "curves": [{"stage": stage, "points": curve.shown()} for stage, curve in self._curves.items()],
            "samples": thin(self._answers, SAMPLES_AT_MOST),
            "report": (self.run / "report.html").is_file(),
        }
