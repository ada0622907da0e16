"""The desk where every API hands in its work: it finds the model, fits the question to it, streams the answer.

In: messages or tokens, sampling, tools, a stage (none: the newest model). Out: Started, then what the voice says, to
Ended. Raises ApiError: before Started when the question cannot be answered, later when the model breaks. It knows
nothing of wire formats.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from liuli.assistant.voices import EngineVoice, ModelVoice, Voice
from liuli.engine import TOOLS, Ended, Event, Sampling, TextStream, Token
from liuli.engine.chat import spare, trimmed
from liuli.engine.constraints import Constraint, check
from liuli.errors import LiuliError, UsageError
from liuli.server.errors import ApiError
from liuli.server.runs import ModelFile
from liuli.server.voices import Keeper
from liuli.server.worker import ASIDE, Busy, Worker
from liuli.text import Message

T = TypeVar("T")


@dataclass(frozen=True)
class Started:
    """The first event: the prompt's length, how many front messages were left out, the seed, the model that answers.

    bytes_of: the bytes a token of this model stands for, or its name's. prompt: its tokens, if they are to be echoed.
    """

    prompt_tokens: int
    left_out: int
    seed: int
    model: dict[str, Any]
    bytes_of: Callable[[int], bytes]
    prompt: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Looked(Generic[T]):
    """What was asked for instead of an answer, and how many tokens were read for it."""

    value: T
    tokens: int = 0


class Desk:
    """One keeper of models, one worker. before: called in the worker's thread when an answer begins. seconds: that an
    answer may take from the question on, then it is cut with "length"; 0: any time. watched: what passes on all that
    the worker tells.
    """

    def __init__(
        self,
        keeper: Keeper,
        worker: Worker,
        before: Callable[[], object] = lambda: None,
        seconds: float = 0,
        watched: Callable[[AsyncIterator[Any]], AsyncIterator[Any]] = lambda stream: stream,
    ) -> None:
        self.keeper, self.worker, self.before, self.watched = keeper, worker, before, watched
        self.seconds = seconds or math.inf

    def stage_of(self, name: str) -> str:
        """What the desk knows a model's id by, "" for the newest model (as no name does); 404 for any other name."""
        if name in ("", self.keeper.name):
            return ""
        models = self.keeper.ids()
        if name not in models:
            ids = ", ".join(repr(id) for id in models or [self.keeper.name])
            message = f"The model {name[:200]!r} does not exist; this server serves {ids}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    async def work(
        self,
        stage: str,
        make: Callable[[ModelFile, Voice], Generator[T | None, None, None]],
        sampling: Sampling | None = None,
    ) -> AsyncIterator[T]:
        """What `make` yields in the worker's thread, given the newest model or that of a stage; errors as ApiError.

        sampling: what is to be checked before.
        """
        if sampling is not None:
            await self.check(sampling, stage)

        def begin() -> Generator[T | None, None, None]:
            self.before()
            found = self.keeper.voice(stage)
            if found is None:
                raise missing(self.keeper, stage)
            with self.keeper.lent(found[0]):
                if found[1].blocks:
                    yield ASIDE
                yield from make(*found)

        stream = self.watched(self.worker.run(begin))
        try:
            async for event in stream:
                if isinstance(event, Token | Ended) and event.stopped_by == "error":  # its figures are no numbers
                    raise ApiError(500, "The model computes no numbers any more (NaN).", code="model_error")
                yield event
        except Busy:
            raise ApiError(
                429, "Too many answers are waited for; try again in a moment.", code="rate_limit_exceeded"
            ) from None
        except LiuliError as error:
            raise ApiError(500, error.what, code="model_error") from error
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def ask(self, stage: str, question: Callable[[ModelVoice], T], read: Callable[[T], int] = lambda _: 0) -> T:
        """One value from a model that is here (not behind another server), found in the worker's thread. read: how many
        tokens that took."""
        return await self._look(stage, lambda voice: Looked(value := question(own(voice)), read(value)))

    async def _look(self, stage: str, look: Callable[[Voice], Looked[T]]) -> T:
        def make(model: ModelFile, voice: Voice) -> Generator[Looked[T], None, None]:
            yield look(voice)

        stream = self.work(stage, make)
        try:
            return (await anext(stream)).value
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def check(self, sampling: Sampling, stage: str) -> None:
        """Raises ApiError 400 for ids outside the vocabulary and for a constraint that cannot be kept.

        A constraint is compiled here, outside the worker's thread, so that a hard one holds up nobody's answer.
        """
        constraint = sampling.constraint
        if not (constraint or sampling.logit_bias or sampling.stop_tokens):
            return
        voice: Voice = await self._look(stage, Looked)
        if not isinstance(voice, ModelVoice):
            return  # who writes the answer checks what it is asked
        tokenizer = voice.tokenizer
        check_ids([id for id, _ in sampling.logit_bias], tokenizer.vocab_size, "logit_bias")
        check_ids(sampling.stop_tokens, tokenizer.vocab_size, "stop_token_ids")
        if constraint:
            try:
                for form in (constraint, replace(constraint, required=False)):  # the latter after a call
                    await run_in_threadpool(check, form, tokenizer)
            except UsageError as error:
                raise ApiError(400, error.what, param=constraint.asked_by) from None

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        tools: Sequence[str],
        *,
        stage: str = "",
        trim: bool = False,
        declared: Sequence[str] = (),
        salt: str = "",
    ) -> AsyncIterator[Started | Event]:
        """The answer of the newest model, or of a stage's, as it comes.

        With `trim`, old turns are left out of a conversation that is too long. tools: the server's own that may run.
        declared: tools that the client runs: the answer ends with a call of one, by Ended("call"). salt: who shares
        what was read before.
        """
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        deadline = time.monotonic() + self.seconds

        def make(model: ModelFile, voice: Voice) -> Generator[Started | Event | None, None, None]:
            kept, prompt_tokens = fit(voice, messages, trim)
            fitted = fit_answer(sampling, seed, voice.context - prompt_tokens)
            if isinstance(voice, ModelVoice):
                fitted = replace(fitted, constraint=fitted.constraint or calls_of(tools))
            if isinstance(voice, EngineVoice):
                said = honoured(voice.reply(kept, fitted, tools, declared, salt=salt, deadline=deadline))
            else:
                said = honoured(voice.reply(kept, fitted, tools, declared), deadline)
            first = next(said)  # what is refused is refused before anything is told
            yield Started(prompt_tokens, len(messages) - len(kept), seed, model.about(), voice.bytes_of)
            yield first
            yield from said

        return self.work(stage, make, sampling)

    def write(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None,
        *,
        stage: str = "",
        salt: str = "",
        bos: bool = True,
        echo: int | None = None,
    ) -> AsyncIterator[Started | Event]:
        """What goes on after a text (of which `bos` makes a document's beginning) or after tokens.

        sampling: None for nothing, where only the prompt is looked at. echo: tell the prompt's tokens, from 0 up with
        their log-probabilities and so many alternatives.
        """
        seed = secrets.randbits(31) if sampling is None or sampling.seed is None else sampling.seed
        deadline = time.monotonic() + self.seconds

        def make(model: ModelFile, found: Voice) -> Generator[Started | Event | None, None, None]:
            voice = own(found)
            tokens = prompt_ids(voice, prompt, bos)
            silent = int(bos and isinstance(prompt, str))
            told = () if echo is None else tuple(echoed(voice, tokens, echo)[silent:])
            # the last token needs no place of its own: nothing is computed after it
            fitted = sampling and fit_answer(sampling, seed, voice.context - len(tokens) + 1)
            yield Started(len(tokens), 0, seed, model.about(), voice.bytes_of, told)
            if fitted is None:
                yield Ended("length", 0)
                return
            yield from voice.write(tokens, fitted, salt=salt, deadline=deadline)

        return self.work(stage, make, sampling)


def fit_answer(sampling: Sampling, seed: int, room: int) -> Sampling:
    """Sampling of an answer that has so many tokens of room; ApiError if it must be longer."""
    if sampling.min_tokens > room:
        message = f"`min_tokens` is {sampling.min_tokens}; after this prompt there is room for {room} tokens."
        raise ApiError(400, message, param="min_tokens")
    return replace(sampling, seed=seed, max_tokens=min(sampling.max_tokens, room))


def honoured(
    events: Generator[Event | None, None, None], deadline: float = math.inf
) -> Generator[Event | None, None, None]:
    """A voice's events, up to a deadline that it does not know. To ask what it cannot do is the request's fault."""
    count = 0
    try:
        with closing(events):
            for event in events:
                yield event
                count += isinstance(event, Token)
                if time.monotonic() > deadline and not isinstance(event, Ended):
                    yield Ended("length", count)
                    return
    except UsageError as error:
        raise ApiError(400, error.what, code="unsupported_value") from None


def echoed(voice: ModelVoice, tokens: Sequence[int], alternatives: int) -> list[Token]:
    """The tokens of a prompt as an answer's; alternatives under 0: without log-probabilities."""
    told = [Token(id, "", math.nan) for id in tokens] if alternatives < 0 else voice.score(tokens, alternatives)
    text = TextStream()
    pieces = [voice.bytes_of(token.id) for token in told]
    shown = [text.feed(piece, last=at == len(pieces) - 1) for at, piece in enumerate(pieces)]
    return [replace(token, text=piece) for token, piece in zip(told, shown, strict=True)]


def calls_of(tools: Sequence[str]) -> Constraint | None:
    """What makes every call of the server's own tools a whole one; text without a call stays free."""
    allowed = {name: TOOLS[name].parameters for name in tools}
    return Constraint("tools", json.dumps(allowed)) if allowed else None


def own(voice: Voice) -> ModelVoice:
    """The voice, if its model is here."""
    if not isinstance(voice, ModelVoice):
        raise ApiError(400, "This server passes questions on to another engine, which only chats.", code="not_here")
    return voice


def prompt_ids(voice: ModelVoice, prompt: str | Sequence[int], bos: bool) -> list[int]:
    """The tokens of a prompt; ApiError when it is empty, too long, or holds an id that is not in the vocabulary."""
    tokenizer = voice.tokenizer
    tokens = [tokenizer.bos] * bos + tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    check_ids(tokens, tokenizer.vocab_size, "prompt")
    if not 0 < len(tokens) <= voice.context:
        message = f"The prompt is {len(tokens)} tokens long; this model reads 1 to {voice.context}."
        raise ApiError(400, message, param="prompt", code="context_length_exceeded" if tokens else None)
    return tokens


def check_ids(ids: Sequence[int], vocab_size: int, field: str) -> None:
    """ApiError for an id outside the vocabulary."""
    for id in ids:
        if not 0 <= id < vocab_size:
            raise ApiError(400, f"Token {id} is outside the vocabulary of {vocab_size}.", param=field)


def missing(keeper: Keeper, stage: str) -> ApiError:
    """Why there is no such model to answer."""
    if not stage:
        return ApiError(503, "The model is still learning to speak; its first words come soon.", code="still_learning")
    have = ", ".join(repr(model.stage) for model in keeper.models()) or "none yet"
    message = f"There is no model of a stage {stage!r} to talk to; there is: {have}."
    return ApiError(404, message, param="model", code="model_not_found")


def fit(voice: Voice, messages: Sequence[Message], trim: bool) -> tuple[list[Message], int]:
    """The messages that fit into the model's context with room for an answer, and their number of tokens.

    With `trim` the oldest turns go first; the system message and the last question stay.
    """
    least = max(1, min(64, voice.context // 4))

    def fits(kept: list[Message], tokens: int) -> bool:
        return tokens <= voice.context - (spare(kept, voice.context, least) if trim else 1)

    kept, tokens = list(messages), voice.prompt_tokens(messages)
    if trim and not fits(kept, tokens):
        kept, tokens = trimmed(messages, voice.prompt_tokens, fits)
    if not fits(kept, tokens):
        question = kept[kept[0].role == "system" :]
        by_system = trim and 0 < len(question) < len(kept) and fits(question, voice.prompt_tokens(question))
        raise ApiError(
            400,
            f"The messages are {tokens} tokens long; this model reads at most {voice.context} with its answer.",
            param="messages",
            code="system_too_long" if by_system else "context_length_exceeded",
        )
    return kept, tokens
