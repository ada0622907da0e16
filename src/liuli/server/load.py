"""`liuli bench serve`: how fast a running server answers many at once; any server with OpenAI's chat API.

Closed load: a number of clients, each of which asks anew as soon as it has its answer. Open load: questions arrive at
random at a given rate (Poisson), whether or not the server keeps up; a time counts from when its question was due, so
that a server that stalls cannot hide behind a client that waits. The client is one asyncio loop that reads the bytes
itself: it takes some microseconds for a token, or it would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from liuli.errors import LiuliError, UsageError

WORDS = ("sun", "and", "moon", "over", "hills", "we", "walk", "by", "old", "rivers", "to", "find", "stone", "home",
         "fire")  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What is asked. rate: questions a second, 0 for closed load. shared_prefix: of prompt_tokens, equal in all.
    spread: answers may have max_tokens * (1 - spread) to max_tokens * (1 + spread) tokens, evenly drawn."""

    url: str
    model: str = ""
    clients: int = 64
    requests: int = 256
    rate: float = 0.0
    prompt_tokens: int = 64
    shared_prefix: int = 0
    max_tokens: int = 64
    spread: float = 0.0
    ignore_eos: bool = False
    warm_up: int = 4
    seed: int = 0
    timeout: float = 120.0


@dataclass
class Answer:
    """What one question met; times in seconds, from when it was due. gaps: between the chunks that came."""

    due: float
    first: float = 0.0
    end: float = 0.0
    gaps: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


def bench(load: Load, key: str = "", told: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Measure; returns {"load", "requests", "errors", "seconds", "tokens_per_s", …, "first_token_s": {"p50", …}, …}.

    key: sent as a bearer token. told: called with each step. Raises UsageError for a URL that is none, LiuliError where
    nothing answers.
    """
    parts = urlsplit(load.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{load.url!r} is no address of a server.", "URL", "for example http://127.0.0.1:8365")
    if min(load.clients, load.requests, load.prompt_tokens, load.max_tokens) < 1 or not 0 <= load.rate < math.inf:
        raise UsageError("Clients, requests and tokens are whole numbers from 1 up, and a rate is a number from 0 up.")
    if not 0 <= load.spread < 1:
        raise UsageError(f"A spread of {load.spread} is out of range.", "--spread", "give a number from 0 to below 1")
    with ThreadPoolExecutor(1) as thread:  # a loop of its own, also where one is running already: in a notebook
        return thread.submit(asyncio.run, _bench(load, key, told)).result()


async def _bench(load: Load, key: str, told: Callable[[str], object]) -> dict[str, Any]:
    load = replace(load, model=load.model or await _first_model(load, key))
    told(f"warming up {load.model}")
    words = load.prompt_tokens
    for number in range(max(1, load.warm_up)):
        answer = await ask(load, key, prompt(load, words, -1 - number), time.perf_counter())
        if answer.error:
            raise LiuliError(f"The server does not answer: {answer.error}", load.url, fix_of(answer.error))
        if number == 0 and answer.prompt_tokens:  # a word is not a token
            words = max(1, round(words * load.prompt_tokens / answer.prompt_tokens))
    prompts = [prompt(load, words, number) for number in range(load.requests)]
    told(f"asking {load.requests} questions")
    began = time.perf_counter()
    answers = await (_open if load.rate else _closed)(load, key, prompts)
    return report(load, answers, time.perf_counter() - began)


def prompt(load: Load, words: int, number: int) -> str:
    """A question of so many words: the shared ones, then ones that no other question begins with."""
    shared = words * min(load.shared_prefix, load.prompt_tokens) // load.prompt_tokens
    same, own = random.Random(load.seed), random.Random(f"{load.seed} {number}")
    return " ".join([*same.choices(WORDS, k=shared), f"{number}:", *own.choices(WORDS, k=words - shared)])


def length(load: Load, text: str) -> int:
    """How many tokens the answer to a question may have: the same each time it is asked."""
    return max(1, round(load.max_tokens * (1 + load.spread * random.Random(text).uniform(-1, 1))))


async def _closed(load: Load, key: str, prompts: Sequence[str]) -> list[Answer]:
    waiting, answers = iter(prompts), list[Answer]()

    async def client() -> None:
        line = Line()
        for text in waiting:  # shared by the clients: each takes the next one
            answers.append(await ask(load, key, text, time.perf_counter(), line))
        line.close()

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return answers


async def _open(load: Load, key: str, prompts: Sequence[str]) -> list[Answer]:
    arrivals, due, asked = random.Random(load.seed), time.perf_counter(), list[asyncio.Task[Answer]]()
    for text in prompts:
        due += arrivals.expovariate(load.rate)
        await asyncio.sleep(due - time.perf_counter())
        asked.append(asyncio.create_task(ask(load, key, text, due)))
    return list(await asyncio.gather(*asked))


@dataclass
class Line:
    """A client's connection, kept from one question to the next as clients do."""

    transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


async def ask(load: Load, key: str, text: str, due: float, line: Line | None = None) -> Answer:
    """One question, streamed; on a connection of its own where there is no line."""
    body: dict[str, Any] = {"model": load.model, "messages": [{"role": "user", "content": text}], "stream": True}
    body |= {"stream_options": {"include_usage": True}, "max_tokens": length(load, text), "temperature": 1.0}
    body |= {"seed": load.seed} | ({"ignore_eos": True} if load.ignore_eos else {})
    answer = Answer(due)
    try:
        async with asyncio.timeout(load.timeout):
            await _exchange(load, key, "POST", "/v1/chat/completions", json.dumps(body).encode(), Reader(answer), line)
    except TimeoutError:
        answer.error = f"no whole answer within {load.timeout:.0f} s"
    except (OSError, asyncio.IncompleteReadError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.end = answer.end or time.perf_counter() - due
    return answer


async def _first_model(load: Load, key: str) -> str:
    reader = Reader(Answer(time.perf_counter()))
    try:
        async with asyncio.timeout(load.timeout):
            await _exchange(load, key, "GET", "/v1/models", b"", reader)
        if reader.answer.error:
            raise ValueError(reader.answer.error)
        return str(json.loads(bytes(reader.text))["data"][0]["id"])
    except (OSError, TimeoutError, ValueError, LookupError) as error:
        what = f"The server does not tell its models: {error or type(error).__name__}"
        raise LiuliError(what, load.url, fix_of(what)) from error


def fix_of(error: str) -> str:
    """What to do where a server does not answer as it should."""
    if "HTTP 401" in error:
        return "give the key: --key or LIULI_KEY"
    return "see that it runs, or name a model of its own: --model"


class Reader(asyncio.Protocol):
    """Reads one HTTP answer: its status, then its body, in chunks or not; of a stream each event as it comes."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.text, self.buffer = answer, bytearray(), bytearray()
        self.over = asyncio.get_running_loop().create_future()
        self.status, self.left, self.last = 0, -1, 0.0
        self.chunked = self.streamed = False

    def data_received(self, data: bytes) -> None:
        """Bytes, cut anywhere."""
        self.buffer += data
        if not self.status and not self._read_head():
            return
        if self.chunked:
            self._read_chunks()
        else:
            self.left -= len(self.buffer)
            self._take(bytes(self.buffer))
            self.buffer.clear()
            if self.left == 0:
                self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        """Too early, or as the sign of the end."""
        if not self.over.done() and (exc or not self.status or self.chunked or self.left > 0):
            self.answer.error = self.answer.error or f"the connection broke off {exc or ''}".strip()
        self._finish()

    def _read_head(self) -> bool:
        head, found, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not found:
            return False
        first, *lines = head.lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines)
        self.status, self.buffer = int(first.split()[1]), bytearray(rest)
        self.chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
        self.streamed = b"event-stream" in fields.get(b"content-type", b"")
        self.left = int(fields.get(b"content-length", b"-1"))
        return True

    def _read_chunks(self) -> None:
        buffer, at = self.buffer, 0
        while (end := buffer.find(b"\r\n", at)) >= 0:
            size = int(buffer[at:end].split(b";")[0], 16)
            if len(buffer) < end + size + 4:
                break
            self._take(bytes(buffer[end + 2 : end + 2 + size]))
            at = end + size + 4
            if not size:
                self._finish()
                break
        del buffer[:at]

    def _take(self, data: bytes) -> None:
        self.text += data
        if self.streamed:
            *events, rest = bytes(self.text).split(b"\n\n")
            self.text = bytearray(rest)
            for event in events:
                if event.startswith(b"data:"):  # else a comment that keeps the connection alive
                    self._event(event)

    def _event(self, event: bytes) -> None:
        now, answer = time.perf_counter() - self.answer.due, self.answer
        if event == b"data: [DONE]":
            answer.end = now
            return
        value = json.loads(event[5:])
        if "error" in value:
            answer.error = str(value["error"].get("message", value["error"]))
        elif value.get("usage"):
            answer.prompt_tokens, answer.tokens = value["usage"]["prompt_tokens"], value["usage"]["completion_tokens"]
        elif value["choices"] and value["choices"][0]["delta"].get("content"):
            if not answer.first:
                answer.first = now
            else:
                answer.gaps.append(now - self.last)
            self.last = now

    def _finish(self) -> None:
        if self.over.done():
            return
        if self.status != 200 and not self.answer.error:
            self.answer.error = f"HTTP {self.status}: {bytes(self.text[:300]).decode('utf-8', 'replace')}"
        self.over.set_result(None)


async def _exchange(
    load: Load, key: str, method: str, path: str, body: bytes, reader: Reader, line: Line | None = None
) -> None:
    parts, held = urlsplit(load.url), line or Line()
    if held.transport is None or held.transport.is_closing():
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        make = asyncio.get_running_loop().create_connection
        held.transport, _ = await make(lambda: reader, parts.hostname or "", port, ssl=secure)
    transport = held.transport
    transport.set_protocol(reader)
    head = [f"{method} {parts.path.rstrip('/').removesuffix('/v1')}{path} HTTP/1.1", f"Host: {parts.netloc}"]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}"] + ["Connection: close"] * (line is None)
    head += [f"Authorization: Bearer {key}"] if key else []
    try:
        transport.write("\r\n".join([*head, "", ""]).encode() + body)
        await reader.over
        if reader.status == 200 and path.endswith("completions") and not (reader.answer.end or reader.answer.error):
            reader.answer.error = "the stream ended without [DONE]"
    finally:
        if line is None or reader.answer.error or not reader.over.done():  # what comes late is not the next answer's
            transport.close()


def report(load: Load, answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The figures of a run that took so many seconds; times in seconds."""
    good = [answer for answer in answers if not answer.error]
    errors: dict[str, int] = {}
    for answer in answers:
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    tokens = sum(answer.tokens for answer in good)
    return {
        "load": asdict(load),
        "requests": len(answers),
        "errors": errors,
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(good) / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "prompt_tokens": sum(answer.prompt_tokens for answer in good),
        "tokens": tokens,
        "first_token_s": spread([answer.first for answer in good if answer.first]),
        "between_chunks_s": spread([gap for answer in good for gap in answer.gaps]),
        "per_token_s": spread([(a.end - a.first) / (a.tokens - 1) for a in good if a.first and a.tokens > 1]),
        "whole_s": spread([answer.end for answer in good]),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles (nearest rank); {} of nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {f"p{p}": ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in (50, 90, 99)}
    return {name: round(value, 6) for name, value in {"mean": math.fsum(ordered) / len(ordered), **ranks}.items()}


def table(figures: dict[str, Any]) -> str:
    """The figures for people; times in milliseconds."""
    load = figures["load"]
    how = f"{load['rate']:g} questions/s arriving at random" if load["rate"] else f"{load['clients']} clients at once"
    lines = [f"{load['url']}  {load['model']}: {figures['requests']} questions, {how}, {figures['seconds']} s", ""]
    lines += [f"{'milliseconds':24}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}"]
    names = {"first_token_s": "to the first token", "between_chunks_s": "between chunks"}
    names |= {"per_token_s": "a token, by answer", "whole_s": "to the whole answer"}
    for key, name in names.items():
        cells = [figures[key].get(each) for each in ("mean", "p50", "p90", "p99")]
        lines += [f"{name:24}" + "".join(f"{'–':>10}" if cell is None else f"{1000 * cell:10.1f}" for cell in cells)]
    lines += ["", f"{figures['tokens_per_s']} tokens/s, {figures['requests_per_s']} answers/s; "]
    lines[-1] += f"{figures['prompt_tokens']} tokens read, {figures['tokens']} written"
    lines += [f"{count} x {error}" for error, count in figures["errors"].items()] or ["no errors"]
    return "\n".join(lines)


def bench_here(load: Load, key: str, as_json: bool) -> None:
    """Measure and print. Exit code 1 where a question was not answered."""
    figures = bench(load, key, told=lambda step: None if as_json else print(f"{step} …", flush=True))
    print(json.dumps(figures, ensure_ascii=False) if as_json else table(figures))
    if figures["errors"]:
        raise SystemExit(1)
