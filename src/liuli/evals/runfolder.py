"""A run folder, read for the report: its files, and the time that was worked in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from liuli.files import read_lines

Facts = dict[str, Any]
PAUSE = 30.0  # seconds without a word before a stage starts (anew): the run lay stopped


@dataclass(frozen=True)
class Run:
    """The files of a run folder; empty where there is none. log and samples carry `at`, seconds of work so far."""

    path: Path
    plan: Facts
    status: Facts
    eval: Facts
    log: list[Facts]
    samples: list[Facts]
    recipe: str

    @property
    def stages(self) -> list[Facts]:
        """The stages that took time; `seconds` over all starts of the run."""
        worked = stage_seconds(self.log)
        stages = [
            stage | {"seconds": max(float(stage.get("seconds") or 0.0), worked.get(stage["name"], 0.0))}
            for stage in self.status.get("stages", [])
        ]
        return [stage for stage in stages if stage["seconds"]]

    @property
    def seconds(self) -> float:
        return sum(float(stage["seconds"]) for stage in self.stages)

    def last(self, figure: str) -> dict[str, float]:
        """Stage -> the last value of a figure in its log."""
        return {str(record["stage"]): float(record[figure]) for record in self.log if finite(record.get(figure))}


def read_run(folder: Path) -> Run:
    """All a report needs from a run folder."""
    log, samples = (
        read_lines(path) if path.exists() else [] for path in (folder / "log.jsonl", folder / "samples.jsonl")
    )
    clocked = work_clock([*log, *samples])
    recipe = folder / "recipe.toml"
    return Run(
        path=folder,
        plan=_read(folder / "plan.json"),
        status=_read(folder / "status.json"),
        eval=_read(folder / "eval.json"),
        log=clocked[: len(log)],
        samples=clocked[len(log) :],
        recipe=recipe.read_text("utf-8") if recipe.exists() else "",
    )


def work_clock(records: Sequence[Facts]) -> list[Facts]:
    """The records with `at`: seconds since the first of them, the time in which the run lay stopped taken out."""
    starts = {float(record["time"]) for record in records if str(record.get("event", "")).endswith("started")}
    times = sorted({float(record["time"]) for record in records})
    at, now, before = dict[float, float](), 0.0, times[0] if times else 0.0
    for moment in times:
        stopped = moment in starts and moment - before > PAUSE
        now += 0.0 if stopped else moment - before
        at[moment], before = now, moment
    return [record | {"at": at[float(record["time"])]} for record in records]


def stage_seconds(log: Sequence[Facts]) -> dict[str, float]:
    """Stage -> seconds of work, from a log with `at`: the time up to a record belongs to the record's stage."""
    spent: dict[str, float] = {}
    for before, record in pairwise(log):
        if record.get("stage"):
            spent[record["stage"]] = spent.get(record["stage"], 0.0) + record["at"] - before["at"]
    return spent


def finite(value: Any) -> TypeGuard[float]:
    """Whether this is a number one can draw."""
    return isinstance(value, int | float) and math.isfinite(value)


def _read(path: Path) -> Facts:
    value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return value if isinstance(value, dict) else {}
