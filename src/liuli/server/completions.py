"""POST /v1/completions: text or tokens in, what goes on after it out; with `echo`, how likely the prompt itself was.

A prompt that is a text is read as the beginning of a document (`<|bos|>` before it, which is not echoed), unless
`add_special_tokens` is false; tokens are read as they are.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from liuli.engine import Ended, Event, Token
from liuli.server.chat_completions import LOWEST_LOGPROB, fingerprint, usage
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.openapi import describes
from liuli.server.replies import TextChoice, TextCompletion, TextLogprobs, Usage
from liuli.server.streaming import DONE, batches, respond, sse
from liuli.server.wire import (
    IGNORED,
    MOST_CHOICES,
    Drawn,
    Prompt,
    Prompts,
    StreamOptions,
    check_options,
    listed,
    read_body,
    salt_of,
)
from liuli.server.worker import WAITING_AT_MOST


class CompletionRequest(Drawn):
    """POST /v1/completions."""

    model: str = ""
    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None

    ignored = IGNORED
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {"suffix": ("",)}  # the model was not taught to fill a gap

    def prompts(self) -> list[Prompt]:
        """Each prompt; ApiError for none or too many."""
        prompts, most = listed(self.prompt), WAITING_AT_MOST // self.each
        if not 0 < len(prompts) <= most:
            message = f"`prompt` takes 1 to {most} prompts: {WAITING_AT_MOST} completions, {self.each} of each."
            raise ApiError(400, message, param="prompt")
        return prompts

    @property
    def each(self) -> int:
        """How many completions are written of a prompt."""
        return max(self.n or 1, self.best_of or 1)

    def check(self) -> None:
        """What single fields cannot say; ApiError."""
        n = self.n or 1
        if self.best_of is not None and (self.best_of < n or (self.stream and self.best_of > n)):
            raise ApiError(400, "`best_of` must be at least `n`, and equal to it in a stream.", param="best_of")
        check_options(self.stream_options, self.stream)
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "`max_tokens` 0 leaves nothing to answer without `echo`.", param="max_tokens")


@dataclass
class Written:
    """One completion so far, its prompt before it if that is echoed. A stream forgets what it has sent."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    length: int = 0  # of the text so far, in characters
    finish: Literal["stop", "length"] | None = None
    started: Started | None = None
    count: int = 0

    def take(self, event: Started | Event) -> None:
        """Add one event; the prompt, if it is echoed, came with Started."""
        if isinstance(event, Token):
            self.tokens.append(event)
            self.offsets.append(self.length)
            self.text += event.text
            self.length += len(event.text)
        elif isinstance(event, Started):
            self.started = event
            for token in event.prompt:
                self.take(token)
        elif isinstance(event, Ended):
            self.count = event.tokens
            self.finish = "length" if event.stopped_by == "length" else "stop"

    def tells(self) -> bool:
        """Whether there is something to send."""
        return bool(self.text or self.tokens or self.finish)

    def forget(self) -> None:
        """What was sent is not kept."""
        self.text, self.tokens, self.offsets, self.finish = "", [], [], None

    @property
    def likelihood(self) -> float:
        """The mean log-probability of a token, by which the best of several is chosen."""
        told = self.tokens[len(self.started.prompt) if self.started else 0 :]
        return sum(token.logprob for token in told) / max(1, len(told))


def completion_routes(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/completions", **describes(CompletionRequest, TextCompletion, stream=True))
    async def completions(request: Request) -> Response:
        asked = await read_body(request, CompletionRequest)
        asked.check()
        reply = Reply(asked, asked.model or desk.keeper.name)
        answers = begin(desk, asked, salt_of(request, asked))
        return await respond(request, reply, answers, bool(asked.stream))

    return routes


def begin(desk: Desk, asked: CompletionRequest, salt: str) -> list[AsyncIterator[Started | Event]]:
    """The completions of every prompt, as many as the best are chosen from; seeds count up."""
    stage, sampling = desk.stage_of(asked.model), asked.sampling(asked.logprobs or 0)
    seeds = [None if sampling.seed is None else sampling.seed + k for k in range(asked.each)]
    echo = (asked.logprobs if asked.logprobs is not None else -1) if asked.echo else None
    return [
        desk.write(
            prompt,
            None if asked.max_tokens == 0 else replace(sampling, seed=seed),
            stage=stage,
            salt=salt,
            bos=asked.add_special_tokens is not False,
            echo=echo,
        )
        for prompt in asked.prompts()
        for seed in seeds
    ]


class Reply:
    """One request's completions in OpenAI's shape."""

    def __init__(self, asked: CompletionRequest, model: str) -> None:
        self.asked = asked
        self.head = {
            "id": f"cmpl-{secrets.token_hex(16)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self.written = [Written() for _ in asked.prompts() for _ in range(asked.each)]

    async def whole(self, answers: Sequence[AsyncIterator[Started | Event]]) -> TextCompletion:
        """The response of a request that does not stream."""
        async for batch in batches(answers):
            for index, event in batch:
                self.written[index].take(event)
        n, each = self.asked.n or 1, self.asked.each
        groups = [self.written[at : at + each] for at in range(0, len(self.written), each)]
        if each > n:
            groups = [sorted(group, key=lambda one: -one.likelihood) for group in groups]
        best = [one for group in groups for one in group[:n]]
        return {
            **self.head,  # type: ignore[typeddict-item]
            "system_fingerprint": self.fingerprint(),
            "choices": [self.choice(index, one) for index, one in enumerate(best)],
            "usage": self.usage(),
        }

    async def chunks(
        self, firsts: Sequence[Started | Event], answers: Sequence[AsyncIterator[Started | Event]]
    ) -> AsyncIterator[bytes]:
        """Server-sent events: text … and how it ended, of each completion; then usage if asked for; then [DONE]."""
        with_usage = bool(self.asked.stream_options and self.asked.stream_options.include_usage)
        for one, first in zip(self.written, firsts, strict=True):
            one.take(first)
        base = {**self.head, "system_fingerprint": self.fingerprint(), **({"usage": None} if with_usage else {})}
        async with aclosing(batches(answers)) as news_of_all:
            async for batch in news_of_all:
                for index, event in batch:
                    self.written[index].take(event)
                news = [index for index in sorted({index for index, _ in batch}) if self.written[index].tells()]
                if news:
                    each = ({**base, "choices": [self.choice(index, self.written[index])]} for index in news)
                    yield b"".join(map(sse, each))
                for index in news:
                    self.written[index].forget()
        yield (sse({**base, "choices": [], "usage": self.usage()}) if with_usage else b"") + DONE

    def choice(self, index: int, one: Written) -> TextChoice:
        return {
            "index": index,
            "text": one.text,
            "logprobs": None if self.asked.logprobs is None else logprobs_out(one),
            "finish_reason": one.finish,
            "seed": one.started.seed if one.started else 0,
        }

    def fingerprint(self) -> str:
        return fingerprint(self.written[0].started) if self.written[0].started else ""

    def usage(self) -> Usage:
        """What was read, each prompt once, and written, what was not chosen too."""
        read = sum(one.started.prompt_tokens for one in self.written[:: self.asked.each] if one.started)
        return usage(read, sum(one.count for one in self.written))


def logprobs_out(one: Written) -> TextLogprobs:
    """The tokens in the old shape that evaluation harnesses read."""
    bytes_of = one.started.bytes_of if one.started else lambda _: b""
    tops: list[dict[str, float] | None] = []
    for token in one.tokens:
        others = {spell(bytes_of(o.id), o.text): max(o.logprob, LOWEST_LOGPROB) for o in token.alternatives}
        others.setdefault(spell(bytes_of(token.id), token.text), max(token.logprob, LOWEST_LOGPROB))
        tops.append(None if math.isnan(token.logprob) else others)
    return {
        "tokens": [spell(bytes_of(token.id), token.text) for token in one.tokens],
        "token_logprobs": [None if math.isnan(t.logprob) else max(t.logprob, LOWEST_LOGPROB) for t in one.tokens],
        "top_logprobs": tops,
        "text_offset": one.offsets,
    }


def spell(piece: bytes, name: str) -> str:
    """A token in words of its own: its text, `bytes:\\x..` where that is no text, the name of a control token."""
    try:
        return piece.decode() or name
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
