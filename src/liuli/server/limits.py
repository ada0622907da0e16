"""How much a key may ask for: buckets of requests and of tokens, told in the headers that OpenAI's clients read.

A bucket fills evenly and holds one minute's worth. A request takes one from the first; what it read and wrote is taken
from the second when that is known, so that bucket may fall below empty, and the key waits until it is above it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from liuli.server.errors import ApiError

ASKER: ContextVar[str] = ContextVar("asker", default="")  # the name of the key that the running request came with


@dataclass
class Bucket:
    """per_minute fits into it. `level` is what was there at the time `at`, in seconds."""

    per_minute: int
    level: float
    at: float

    def fill(self, now: float) -> None:
        """Let in what came since `at`."""
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now

    def seconds_until(self, level: float) -> float:
        """How long it takes to fill up to `level`."""
        seconds = (level - self.level) * 60 / self.per_minute
        return seconds if seconds > 1e-6 else 0.0  # a sum of many pauses is not exact


@dataclass
class Limits:
    """The buckets of every key. clock: seconds."""

    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def admit(
        self, name: str, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> tuple[ApiError | None, dict[str, str]]:
        """Why a request of this key must wait (None: it need not, and is counted), and the headers that say so."""
        asked = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        buckets = {kind: self._bucket(name, kind, most) for kind, most in asked.items() if most}
        waits = {kind: bucket.seconds_until(1) for kind, bucket in buckets.items()}
        kind, wait = max(waits.items(), key=lambda item: item[1], default=("", 0.0))
        if not wait and "requests" in buckets:
            buckets["requests"].level -= 1
        headers: dict[str, str] = {}
        for each, bucket in buckets.items():
            headers[f"x-ratelimit-limit-{each}"] = str(bucket.per_minute)
            headers[f"x-ratelimit-remaining-{each}"] = str(max(0, math.floor(bucket.level)))
            headers[f"x-ratelimit-reset-{each}"] = f"{bucket.seconds_until(bucket.per_minute):.3f}s"
        if not wait:
            return None, headers
        headers["retry-after"] = str(math.ceil(wait))
        message = f"Rate limit reached: {asked[kind]} {kind} per minute; try again in {math.ceil(wait)} s."
        return ApiError(429, message, code="rate_limit_exceeded"), headers

    def charge(self, name: str, tokens: int) -> None:
        """Take tokens that were read or written from the bucket of a key, if it has one."""
        if bucket := self._buckets.get((name, "tokens")):
            bucket.fill(self.clock())
            bucket.level -= tokens

    def _bucket(self, name: str, kind: str, per_minute: int) -> Bucket:
        now = self.clock()
        bucket = self._buckets.get((name, kind))
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[name, kind] = Bucket(per_minute, per_minute, now)
        bucket.fill(now)
        return bucket
