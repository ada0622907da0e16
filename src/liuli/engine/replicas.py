"""Replicas: one model in several processes, each with its share of the cores; together they are one Scheduler.

In: requests. Out: tokens, in the requests. Two threads that share the products of a small model wait for one another at
each of them, and while they are at it Python's lock keeps everyone else waiting; processes wait for nobody. What a
request is and how it is written is the engine's affair; nothing here computes.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from operator import attrgetter
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from liuli.engine.answer import Token
from liuli.engine.cache import BLOCK
from liuli.engine.scheduler import Stats
from liuli.errors import LiuliError

if TYPE_CHECKING:
    from liuli.engine.engine import Engine, Request

LOG = logging.getLogger("liuli.engine")
WAIT_SECONDS = 0.005  # for news, before who asked may look for something else to do
PAUSE_SECONDS = 0.001  # between two tellings of a replica, for each answer that it writes
ANSWER_TOKENS = 64  # an answer that is being written is as much work as reading so many tokens, roughly
BLOCKS_REMEMBERED = 65_536
_SENT = ("prompt", "sampling", "salt", "priority", "deadline", "conversation")  # of a request
_COUNTED = tuple(each.name for each in fields(Stats) if each.name != "steps")
_parts = attrgetter(*Token.__slots__)  # a tuple crosses a pipe in a third of a Token's time
_Inbox = SimpleQueue["tuple[int, Request | Exception | None]"]


@dataclass(eq=False)
class _Replica:
    """A process, our end of the pipe to it, and what it was asked and has not ended. ready: it has its model."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    ready: bool = False
    asked: dict[int, Request] = field(default_factory=dict)
    unsent: list[tuple[int, dict[str, Any] | None]] = field(default_factory=list)  # questions, and cancellations


class Replicas:
    """`count` processes that have each an engine of the model folder `path`. how: of `Model`.

    A request goes where least is to be done for it: where few are being answered, or its beginning was read before. One
    of a process that dies fails, and another process begins. They read the folder; what changes in the weights of this
    process they do not see.
    """

    def __init__(self, path: str, count: int, **how: Any) -> None:
        self._given = (path, max(1, torch.get_num_threads() // count), how)
        self._numbers = itertools.count()
        self._read: OrderedDict[int, _Replica] = OrderedDict()  # who read the tokens up to the end of a block last
        self.stats = Stats()
        self.replicas = [self._begin() for _ in range(count)]
        weakref.finalize(self, _end, self.replicas)

    def __len__(self) -> int:
        """How many requests are being answered or waited for."""
        return sum(len(replica.asked) for replica in self.replicas)

    def submit(self, request: Request) -> None:
        """Take a request that has been checked. Raises LiuliError where no process could begin."""
        if not self.replicas:
            raise LiuliError("no process could begin that writes", "replicas", "what it said stands above")
        blocks = list(_chain(request.prompt, request.salt))
        known = {}
        for count, block in enumerate(blocks, 1):
            if block in self._read:
                known[self._read[block]] = count * BLOCK
        chosen = min(self.replicas, key=lambda each: ANSWER_TOKENS * len(each.asked) - known.get(each, 0))
        for block in blocks:
            self._read[block] = chosen
            self._read.move_to_end(block)
        while len(self._read) > BLOCKS_REMEMBERED:
            self._read.popitem(last=False)
        number = next(self._numbers)
        chosen.asked[number] = request
        chosen.unsent.append((number, {name: getattr(request, name) for name in _SENT}))

    def step(self) -> list[Request]:
        """Wait a moment for tokens. Returns the requests that ended; those with `failed` broke."""
        self.stats.steps += 1
        self._send()
        ended: list[Request] = []
        by_pipe = {replica.pipe: replica for replica in self.replicas}
        for pipe in wait(list(by_pipe), WAIT_SECONDS):
            replica = by_pipe[pipe]  # type: ignore[index]
            try:
                while replica.pipe.poll():
                    ended += self._take(replica, *replica.pipe.recv())
            except (EOFError, OSError):
                ended += self._replace(replica)
        return ended

    def cancel(self, request: Request) -> None:
        """Nobody waits for this answer any more."""
        request.cancelled = True
        for replica in self.replicas:
            for number in [number for number, asked in replica.asked.items() if asked is request]:
                del replica.asked[number]
                replica.unsent.append((number, None))
        if not len(self):
            self._send()  # there may be no step for a long time

    def _begin(self) -> _Replica:
        """A new process. It is not multiprocessing's, which would run the user's own program once more in it."""
        ours, theirs = Pipe()
        command = [sys.executable, "-P", "-c", f"from {__name__} import live; live({theirs.fileno()})"]
        found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        # a session of its own: Ctrl-C is for who answers people
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=found, start_new_session=True)
        theirs.close()  # or its end would not be seen
        ours.send(self._given)
        return _Replica(process, ours)

    def _send(self) -> None:
        """Together: to wake a process once is as much work as to ask it a few questions."""
        for replica in self.replicas:
            if replica.unsent:
                with suppress(OSError):  # it is gone: who reads from it next sees that
                    replica.pipe.send(replica.unsent)
                replica.unsent = []

    def _take(
        self, replica: _Replica, news: list[tuple[int, list[tuple[Any, ...]], str]], counted: Sequence[int]
    ) -> Iterator[Request]:
        """Hand on what a replica told; yields what has ended."""
        replica.ready = True
        for name, more in zip(_COUNTED, counted, strict=True):
            setattr(self.stats, name, getattr(self.stats, name) + more)
        for number, tokens, failed in news:
            request = replica.asked.get(number)
            if request is None:
                continue  # cancelled in the meantime
            request.tokens += [Token(*parts) for parts in tokens]
            if failed:
                request.failed = RuntimeError(failed)
            if request.over:
                del replica.asked[number]
                yield request

    def _replace(self, gone: _Replica) -> list[Request]:
        """Another process in the place of one that died, unless it died before it could write; what it had to write
        fails."""
        LOG.error("a process that wrote answers died")
        failed = list(gone.asked.values())
        for request in failed:
            request.failed = RuntimeError("the process that wrote this answer died")
        _end([gone])
        self._read.clear()
        at = self.replicas.index(gone)
        self.replicas[at : at + 1] = [self._begin()] if gone.ready else []
        return failed


def _end(replicas: list[_Replica]) -> None:
    for replica in replicas:
        replica.pipe.close()
        replica.process.kill()  # it keeps nothing, and may still be busy with beginning
        replica.process.wait()


def _chain(tokens: Sequence[int], salt: str) -> Iterator[int]:
    """A number for each whole block of tokens and all that stands before it."""
    before = hash(salt)
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield (before := hash((before, *tokens[start : start + BLOCK])))


# --- in a process of its own


def live(pipe_number: int) -> None:
    """What a replica does, until the process that started it closes the pipe, or ends."""
    from liuli.engine.loaded import Model

    pipe = Connection(pipe_number)
    path, threads, how = pipe.recv()
    torch.set_num_threads(threads)
    engine = Model(path, **how).engine
    gc.freeze()  # as the server does with what stays
    inbox = _Inbox()
    threading.Thread(target=_receive, args=(pipe, engine, inbox), daemon=True).start()
    with suppress(OSError):  # nobody listens any more
        pipe.send(([], [0] * len(_COUNTED)))
        _Writer(pipe, engine, inbox).work()


def _receive(pipe: Connection, engine: Engine, inbox: _Inbox) -> None:
    """Make requests of what comes; a constraint that takes long to prepare holds up nobody's answer here."""
    while True:
        try:
            news = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        for number, asked in news:
            try:
                inbox.put((number, asked and engine.request(**asked)))
            except Exception as error:
                inbox.put((number, error))


class _Writer:
    """Writes what is asked for, and tells what has been written."""

    def __init__(self, pipe: Connection, engine: Engine, inbox: _Inbox) -> None:
        self.pipe, self.streams, self.inbox = pipe, engine.streams, inbox
        self.asked: dict[int, Request] = {}
        self.told: dict[int, int] = {}  # how many tokens of each
        self.counted = [0] * len(_COUNTED)
        self.last = 0.0

    def work(self) -> None:
        """For ever."""
        while True:
            while not (self.asked and self.inbox.empty()):
                self._accept(*self.inbox.get())
            self.streams.step()
            self._tell()

    def _accept(self, number: int, request: Request | Exception | None) -> None:
        """A question, or that its answer is not wanted any more."""
        if isinstance(request, Exception):
            self.pipe.send(([(number, [], repr(request))], [0] * len(_COUNTED)))
        elif request is not None:
            self.asked[number], self.told[number] = request, 0
            self.streams.submit(request)
        elif number in self.asked:
            self.streams.cancel(self.asked.pop(number))
            del self.told[number]

    def _tell(self) -> None:
        """How an answer begins and ends is told at once; in between, the busier it is, the more at a time."""
        over = [number for number, each in self.asked.items() if each.over]
        begun = any(not self.told[number] and each.tokens for number, each in self.asked.items())
        now = time.monotonic()
        if not (over or begun) and now - self.last < PAUSE_SECONDS * len(self.asked):
            return
        news = [
            (number, list(map(_parts, each.tokens[self.told[number] :])), repr(each.failed) if each.failed else "")
            for number, each in self.asked.items()
        ]
        counted = [getattr(self.streams.stats, name) for name in _COUNTED]
        self.pipe.send((news, [new - old for new, old in zip(counted, self.counted, strict=True)]))
        self.counted, self.last = counted, now
        self.told = {number: len(each.tokens) for number, each in self.asked.items()}
        for number in over:
            del self.asked[number], self.told[number]
