"""Steps until a budget is used, for stages whose step is more than one batch of rows (preferences, rewards).

What `fit` promises holds here too: killed at any moment and started again, the run ends in the same weights. Of several
processes the first alone looks at the clock and at checkpoints, and all do what it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liuli.train.checkpoint import load_checkpoint, save_checkpoint
from liuli.train.log import RunLog
from liuli.train.loop import patient
from liuli.train.pace import Pace
from liuli.train.parallel import from_first

Figures = dict[str, float]


def run_steps(
    take_step: Callable[[int], Figures],
    pace: Pace,
    *,
    log: RunLog,
    state: Callable[[], dict[str, Any]],
    load_state: Callable[[dict[str, Any]], None],
    checkpoints: Path | None,
    save_every_s: float = 60.0,
    shown: tuple[str, ...] = (),
) -> tuple[int, Figures]:
    """Take steps until `pace` is done, going on from `checkpoints`; the number of steps and the last one's figures.

    take_step(number of steps done before): the figures of one step; whatever is random in it must follow from that
    number. state, load_state: everything that changes.
    shown: figures for the bar. Ctrl-C saves after the step and raises KeyboardInterrupt.
    """
    done, figures, saved = 0, Figures(), time.monotonic()

    def now() -> tuple[bool, bool]:
        """Whether to stop, and whether to save."""
        stop = stopping.is_set()
        return stop, checkpoints is not None and (stop or time.monotonic() - saved >= save_every_s)

    if checkpoints is not None and (found := from_first(load_checkpoint, checkpoints, log.warn)) is not None:
        done = found[0]
        load_state(found[1]["own"])
        pace.load_state(found[1]["pace"])
        figures = found[1].get("figures", {})
        log.say(f"continuing from step {done}")
    with patient() as stopping:
        while pace.progress < 1.0:
            figures = take_step(done)
            done += 1
            pace.progress = from_first(pace.advance, done)
            log.progress(pace.progress, pace.seconds_left(), step=done, **{key: figures[key] for key in shown})
            log.figures(step=done, progress=pace.progress, **figures)
            stop, save = from_first(now)
            if save:
                whole = {"own": state(), "pace": pace.state(), "figures": figures}
                from_first(save_checkpoint, checkpoints, done, whole)
                saved = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    return done, figures
