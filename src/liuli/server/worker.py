"""One thread that does all generating: any number of answers take turns in it, one token each.

In: functions that make a generator. Out: the generator's values, in the event loop that asked, as they come: all of a
turn at once, for to wake a loop costs more than to hand it a token. It knows nothing of models or HTTP. Leaving the
`async for` early cancels the work at the next token.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

LOG = logging.getLogger("liuli.server")
T = TypeVar("T")
WAITING_AT_MOST = 128  # twice as many as the engine writes at once
WAIT_SECONDS = 0.01  # that a value waits at most for those of the same turn


class Busy(Exception):
    """More answers are being generated or waited for than the worker takes."""


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@dataclass(eq=False)
class _Job(Generic[T]):
    make: Callable[[], Generator[T, None, None]]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[T | _End] = field(default_factory=asyncio.Queue)
    generator: Generator[T, None, None] | None = None
    cancelled: bool = False

    def step(self, tell: Callable[[_Job[T], T | _End], object]) -> bool:
        """Advance by one value; False when the job is over."""
        try:
            if self.cancelled:
                if self.generator is not None:
                    self.generator.close()
                return False
            if self.generator is None:
                self.generator = self.make()
            tell(self, next(self.generator))
            return True
        except StopIteration:
            tell(self, _End(None))
        except Exception as error:  # one failed answer must not end the others: it is raised where it was asked for
            tell(self, _End(error))
        return False


class _News:
    """What jobs have said and their loops have not been told yet."""

    def __init__(self) -> None:
        self.since = 0.0
        self.said: dict[asyncio.AbstractEventLoop, list[tuple[_Job[Any], Any]]] = {}

    def add(self, job: _Job[Any], event: Any) -> None:
        """Keep one event, but none longer than WAIT_SECONDS while others are made."""
        if not self.said:
            self.since = time.monotonic()
        self.said.setdefault(job.loop, []).append((job, event))
        if time.monotonic() - self.since > WAIT_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Wake each loop once."""
        for loop, events in self.said.items():
            try:
                loop.call_soon_threadsafe(_hand_over, events)
            except RuntimeError:  # the loop is closed: nobody listens any more
                for job, _ in events:
                    job.cancelled = True
        self.said = {}


def _hand_over(events: list[tuple[_Job[Any], Any]]) -> None:
    for job, event in events:
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
        self._news = _News()
        self._start()

    def __len__(self) -> int:
        """How many answers are being generated or waited for."""
        return len(self._jobs)

    async def run(self, make: Callable[[], Generator[T, None, None]]) -> AsyncIterator[T]:
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
            job.cancelled = True

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
            with self._wake:
                while self._jobs:
                    self._news.add(self._jobs.pop(0), _End(RuntimeError("the thread that wrote this answer died")))
            self._news.tell()
            self._died()
            self._start()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closed:
                    self._wake.wait()
                if not self._jobs:
                    return
                turn = list(self._jobs)
            over = {job for job in turn if not job.step(self._news.add)}
            self._news.tell()
            with self._wake:
                self._jobs = [job for job in self._jobs if job not in over]
