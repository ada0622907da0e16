"""One thread that does all generating: any number of answers take turns in it.

In: functions that make a generator; a turn takes all its values up to None, which says that what comes next is not
there yet; after ASIDE it may block, and goes on in a thread of its own. Out: the values, in the event loop that asked,
as they come. It knows nothing of models or HTTP. Leaving the `async for` early cancels the work at its next turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

LOG = logging.getLogger("liuli.server")
T = TypeVar("T")
WAITING_AT_MOST = 128  # twice as many as the engine writes at once
ASIDE: Any = object()
PAUSE_SECONDS = 0.0015  # between what an answer tells, for each answer in the turn: 64 of them, a tenth of a second


class Busy(Exception):
    """More answers are being generated or waited for than the worker takes."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@dataclass(eq=False)
class _Job(Generic[T]):
    make: Callable[[], Generator[T | None, None, None]]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[T | _End] = field(default_factory=asyncio.Queue)
    generator: Generator[T | None, None, None] | None = None
    cancelled: bool = False
    aside: bool = False
    said: list[T | _End] = field(default_factory=list)  # and not told yet
    told: float = 0.0  # when it was told last, and how often
    tellings: int = 0

    def step(self) -> bool:
        """Advance by a turn, aside by a value; False when the job is over."""
        try:
            if self.cancelled:
                if self.generator is not None:
                    self.generator.close()
                return False
            if self.generator is None:
                self.generator = self.make()
            for value in self.generator:
                if value is ASIDE:
                    self.aside = True
                elif value is not None:
                    self.said.append(value)
                if self.aside or value is None:
                    return True
            self.said.append(_End(None))
        except Exception as error:  # one failed answer must not end the others: it is raised where it was asked for
            self.said.append(_End(error))
        return False


def _told(jobs: Sequence[_Job[Any]], over: Collection[_Job[Any]]) -> None:
    """Hand what jobs have said to their loops, each of which is woken once.

    How an answer begins and ends is told at once. In between the busier the thread is the more is told at a time: to
    wake an answer's readers costs as much as a dozen tokens.
    """
    now, pause = time.monotonic(), PAUSE_SECONDS * len(jobs)
    news: dict[asyncio.AbstractEventLoop, list[tuple[_Job[Any], list[Any]]]] = {}
    for job in jobs:
        if job.said and (job.tellings < 2 or job in over or now - job.told >= pause):
            news.setdefault(job.loop, []).append((job, job.said))
            job.said, job.told, job.tellings = [], now, job.tellings + 1
    for loop, said in news.items():
        try:
            loop.call_soon_threadsafe(_hand_over, said)
        except RuntimeError:  # the loop is closed: nobody listens any more
            for job, _ in said:
                job.cancelled = True


def _hand_over(said: list[tuple[_Job[Any], list[Any]]]) -> None:
    for job, events in said:
        for event in events:
            job.events.put_nowait(event)


class Worker:
    """The thread. Start one per process; `close` ends it.

    Should the thread die, what it was writing fails and a new one begins; `died` is called in between.
    """

    def __init__(self, died: Callable[[], object] = lambda: None) -> None:
        self._jobs: list[_Job[Any]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._died = died
        self._start()

    def __len__(self) -> int:
        """How many answers are being generated or waited for."""
        return sum(not (job.aside and job.cancelled) for job in self._jobs)

    async def run(self, make: Callable[[], Generator[T | None, None, None]]) -> AsyncIterator[T]:
        """Run the generator that `make` returns in the worker's thread and yield its values.

        Raises Busy at once when too many wait; what the generator raises is raised here.
        """
        job = _Job(make, asyncio.get_running_loop())
        with self._wake:
            if self._closed or len(self._jobs) >= WAITING_AT_MOST:
                raise Busy
            self._jobs.append(job)
            self._wake.notify()
        try:
            while True:
                event = await job.events.get()
                if isinstance(event, _End):
                    if event.error is not None:
                        raise event.error
                    return
                yield event
        finally:
            job.cancelled = True  # it has its place until it has noticed: aside it holds a thread

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._wake:
            self._closed = True
            for job in self._jobs:
                job.cancelled = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._live, name="liuli-answers", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        try:
            self._work()
        except BaseException:  # nothing a model does gets here: the interpreter is ending the thread
            LOG.exception("the thread that writes answers died; a new one begins")
            dead = [job for job in self._jobs if not job.aside]
            self._drop(dead)
            for job in dead:
                job.said.append(_End(RuntimeError("the thread that wrote this answer died")))
            _told(dead, dead)
            self._died()
            self._start()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not (turn := [job for job in self._jobs if not job.aside]) and not self._closed:
                    self._wake.wait()
            if not turn:
                return
            over = {job for job in turn if not job.step()}
            _told(turn, over)
            for job in turn:
                if job.aside and job not in over:
                    threading.Thread(target=self._alone, args=(job,), name="liuli-answer", daemon=True).start()
            self._drop(over)

    def _alone(self, job: _Job[Any]) -> None:
        """The rest of one job that blocks."""
        goes_on = True
        while goes_on:
            goes_on = job.step()
            _told([job], [job])
        self._drop([job])

    def _drop(self, jobs: Collection[_Job[Any]]) -> None:
        with self._wake:
            self._jobs = [job for job in self._jobs if job not in jobs]
