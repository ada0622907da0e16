"""How far a run is, and how large a learning rate belongs there.

A run has a budget: a number of steps, or seconds. With steps, progress is steps done over steps. With seconds, the
clock decides every `EVERY` steps how much progress one step makes, so that it reaches 1 when the time is up. Those
decisions are part of the run: they are written down, and a run that is killed and started again follows what was
decided instead of asking the clock anew, so its weights come out the same bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liuli.files import append_line, read_lines

EVERY = 10


def schedule(progress: float, warmup: float = 0.02, decay: float = 0.6, floor: float = 0.05) -> float:
    """Warm-up, stable, linear decay: the factor on all learning rates at a progress in [0, 1].

    decay: share of the run over which the rate falls, linearly, to `floor` (arXiv 2405.18392).
    """
    rising = min(1.0, (progress + 1e-3) / warmup) if warmup else 1.0
    falling = (1.0 - progress) / decay if decay else 1.0
    return min(rising, floor + (1 - floor) * min(1.0, max(0.0, falling)))


class Pace:
    """Turns a budget into progress. Exactly one of `steps` and `seconds` is given."""

    def __init__(
        self,
        steps: int | None = None,
        seconds: float | None = None,
        journal: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert (steps is None) != (seconds is None), "a run has one budget: steps or seconds"
        self.steps, self.seconds, self.journal, self.clock = steps, seconds, journal, clock
        self.progress, self.rate, self.spent = 0.0, 0.0, 0.0
        self.decided: dict[int, float] = {}
        self.started = self.last = clock()
        self.step_seconds: list[float] = []
        if journal is not None and seconds is not None:
            self.decided = {line["step"]: float(line["rate"]) for line in read_lines(journal)}

    @classmethod
    def of(cls, minutes: float | None, steps: int, checkpoints: Path) -> Pace:
        """The pace of a stage: minutes where they are given, else steps."""
        if minutes is None:
            return cls(steps=steps)
        return cls(seconds=60 * minutes, journal=checkpoints / "pace.jsonl")

    def seconds_spent(self) -> float:
        """Time this run has had, over all its starts."""
        return self.spent + self.clock() - self.started

    def seconds_left(self) -> float | None:
        """Estimate for the rest; None while nothing is known."""
        if self.seconds is not None:
            return max(0.0, self.seconds - self.seconds_spent())
        if not self.step_seconds or not self.rate:
            return None
        return (1 - self.progress) / self.rate * self.typical_step()

    def typical_step(self) -> float:
        """Median of the last steps: neither the first (compilation) nor a save counts for much."""
        recent = sorted(self.step_seconds[-60:])
        return recent[len(recent) // 2]

    def advance(self, step: int) -> float:
        """Call at the end of step number `step` (from 1); gives the progress reached."""
        now = self.clock()
        self.step_seconds.append(now - self.last)
        self.last = now
        if self.steps is not None:
            self.rate = 1 / self.steps
            self.progress = step / self.steps
            return self.progress
        if step in self.decided:
            self.rate = self.decided[step]
        elif step % EVERY == 2 or not self.rate:
            self.rate = self._decide(step)
        self.progress = min(1.0, self.progress + self.rate)
        if self.progress > 1 - 1e-9:
            self.progress = 1.0
        return self.progress

    def _decide(self, step: int) -> float:
        assert self.seconds is not None
        left = self.seconds - self.seconds_spent()
        # saves and samples take time too: the mean over what has run since the first step, where that is longer
        later = self.step_seconds[1:][-200:]
        per_step = max(sum(later) / len(later), 1e-6) if later else max(self.step_seconds[-1] / 4, 1e-6)
        steps_left = max(1, round(left / per_step))
        rate = (1 - self.progress) / steps_left
        if self.journal is not None:
            append_line(self.journal, {"step": step, "rate": rate})
        return rate

    def state(self) -> dict[str, Any]:
        return {"progress": self.progress, "rate": self.rate, "spent": self.seconds_spent()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.progress, self.rate, self.spent = state["progress"], state["rate"], state["spent"]
        self.started = self.last = self.clock()
