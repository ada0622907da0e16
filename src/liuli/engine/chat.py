"""Conversations: messages in, messages out, with tool calls run in between.

An answer that calls a tool is followed by the tool's message, and the model goes on; at most MAX_CALLS times.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeVar

from liuli.engine.answer import Answer, Ended, Token
from liuli.engine.engine import Engine, Request
from liuli.engine.sampling import Sampling
from liuli.engine.tools import TOOLS, Tool, run_call
from liuli.errors import LiuliError
from liuli.text.chat import Message, Messages, as_messages, parse_answer, render
from liuli.text.tokenizer import Tokenizer

MAX_CALLS = 4
REMEMBERED = 4  # questions before the last one that go only where not even a short answer has room
Size = TypeVar("Size")
Event = Token | Message | Ended


class Streams(Protocol):
    """What `reply` asks of an engine; one that computes elsewhere will do."""

    tokenizer: Tokenizer

    @property
    def context(self) -> int: ...

    def poll(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Iterator[Token | None]: ...


@dataclass
class Turn:
    """What one conversation got: the messages produced, and the engine's answers behind the assistant's ones."""

    messages: list[Message] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


def reply(
    engine: Streams, messages: Messages, sampling: Sampling, tools: Mapping[str, Tool] = TOOLS, **more: Any
) -> Generator[Token | Message, None, None]:
    """One answer, streamed: tokens as they come; for a call, the assistant's message with it and the tool's message.

    Texts of the tokens joined are the content that is shown; the tokens of calls and thoughts have none. The last token
    has `stopped_by`. Closing the iterator stops the work. more: salt, deadline of the Request.
    """
    with closing(polled_reply(engine, messages, sampling, tools, **more)) as polled:
        yield from (event for event in polled if isinstance(event, Token | Message))


def polled_reply(
    engine: Streams,
    messages: Messages,
    sampling: Sampling,
    tools: Mapping[str, Tool] = TOOLS,
    declared: Collection[str] = (),
    **more: Any,
) -> Generator[Event | None, None, None]:
    """`reply`, for one thread that serves many: None where what comes next is not there yet, and others may go on.

    declared: tools that are run elsewhere: a message that calls one is the last. Ended follows.
    """

    def say(history: list[Message], sampling: Sampling) -> Generator[Token | None, None, Said]:
        prompt = fit(history, engine, sampling)
        return _said(engine.poll(prompt, sampling, conversation=True, **more), engine.tokenizer)

    return with_calls(say, as_messages(messages), sampling, tools, declared)


class Said(NamedTuple):
    """What one answer came to: its message, its last token as it may be shown, how many tokens it took."""

    message: Message
    last: Token
    tokens: int


def with_calls(
    say: Callable[[list[Message], Sampling], Generator[Token | None, None, Said]],
    messages: Sequence[Message],
    sampling: Sampling,
    tools: Mapping[str, Tool],
    declared: Collection[str],
) -> Generator[Event | None, None, None]:
    """`polled_reply`, whoever writes. say: begins an answer, and yields all that is shown of it but the last token;
    raises LiuliError where it cannot begin one.
    """
    history, written, reused = list(messages), 0, 0
    last: Token | None = None
    for calls_made in range(MAX_CALLS + 1):
        try:
            saying = say(history, following(sampling, calls_made, written))
        except LiuliError:
            if last is None:
                raise
            last = replace(last, text="", stopped_by="length")  # after the tool's result there is no room for more
            break
        message, last, count = yield from saying
        written += count
        reused = reused if calls_made else last.reused
        if calls_made == MAX_CALLS or not _calls(message, last):
            break
        if any(call.name in declared for call in message.tool_calls):
            yield message
            yield Ended("call", written, reused)
            return
        produced = [message, *answer_calls(message, tools)]
        yield from produced
        history += produced
    assert last is not None
    yield last
    yield Ended(last.stopped_by or "end", written, reused)


def _said(stream: Iterator[Token | None], tokenizer: Tokenizer) -> Generator[Token | None, None, Said]:
    tokens: list[Token] = []
    for token in stream:
        if token is not None:
            tokens.append(token)
        if token is None or not (token.hidden or token.stopped_by):
            yield token
    last = replace(tokens[-1], text="") if tokens[-1].hidden else tokens[-1]
    return Said(parse_answer([token.id for token in tokens], tokenizer), last, len(tokens))


def reply_many(
    engine: Engine,
    conversations: Sequence[Messages],
    sampling: Sampling | Sequence[Sampling],
    tools: Mapping[str, Tool] = TOOLS,
) -> list[list[Message]]:
    """The messages produced for each conversation: calls, tools' messages, the final answer. See `turns` for more."""
    return [turn.messages for turn in turns(engine, conversations, sampling, tools)]


def turns(
    engine: Engine,
    conversations: Sequence[Messages],
    sampling: Sampling | Sequence[Sampling],
    tools: Mapping[str, Tool] = TOOLS,
) -> list[Turn]:
    """`reply` for many conversations in one batch, each at its own point: one reads a tool's result, others write."""
    histories = [list(as_messages(conversation)) for conversation in conversations]
    each = [sampling] * len(histories) if isinstance(sampling, Sampling) else list(sampling)
    results = [Turn() for _ in histories]

    def begin(number: int) -> Request:
        turn = results[number]
        written = sum(len(answer.tokens) for answer in turn.answers)
        sampling = following(each[number], len(turn.answers), written)
        prompt = fit(histories[number] + turn.messages, engine, sampling)
        return engine.request(prompt, sampling, number, conversation=True)

    def then(request: Request) -> Request | None:
        turn = results[request.number]
        answer = request.answer()
        message = parse_answer(answer.ids, engine.tokenizer)
        if answer.stopped_by == "stop":  # the tokens hold the stop string, what is shown does not
            message = replace(message, content="".join(token.text for token in answer.tokens if not token.hidden))
        calls_made = len(turn.answers)
        turn.answers.append(answer)
        turn.messages.append(message)
        if calls_made >= MAX_CALLS or not _calls(message, answer.tokens[-1]):
            return None
        turn.messages += answer_calls(message, tools)
        try:
            return begin(request.number)
        except LiuliError:  # after the tool's result there is no room for more: the conversation ends with it
            return None

    engine.work([begin(number) for number in range(len(histories))], then)
    return results


def answer_calls(message: Message, tools: Mapping[str, Tool]) -> list[Message]:
    """Run the calls of an assistant's message: one message of role tool for each."""
    return [
        Message("tool", run_call(call.name, call.arguments, tools), tool_call_id=call.id) for call in message.tool_calls
    ]


def spare(messages: Sequence[Message], context: int, least: int) -> int:
    """Tokens of the context to keep free for the answer: half of it while there is a question older than REMEMBERED
    others before the last one, which may go for it; else `least`."""
    return context // 2 if sum(message.role == "user" for message in messages) > REMEMBERED + 1 else least


def fit(messages: Sequence[Message], engine: Streams, sampling: Sampling) -> list[int]:
    """The prompt for the next answer. A conversation too long for the context loses its oldest turns, never the system
    message nor the newest question.

    Room is kept for the answer (`spare`): `max_tokens`, but at most a quarter of the context, or half of it where old
    turns can go. Raises LiuliError if the newest question alone does not fit.
    """

    def fits(kept: list[Message], prompt: list[int]) -> bool:
        answer = min(sampling.max_tokens, spare(kept, engine.context, engine.context // 4))
        return len(prompt) + answer <= engine.context

    _, prompt = trimmed(messages, lambda kept: render(kept, engine.tokenizer, answer=True).tokens, fits)
    if len(prompt) > engine.context:
        what = f"the question has {len(prompt)} tokens, the model's context is {engine.context}"
        raise LiuliError(what, "conversation", "shorten the question")
    return prompt


def trimmed(
    messages: Sequence[Message], size: Callable[[list[Message]], Size], fits: Callable[[list[Message], Size], bool]
) -> tuple[list[Message], Size]:
    """A conversation without as many of its oldest turns as must go for it to fit, and its size; the system message and
    the newest question stay, even where they do not fit. By bisection: to take the size of a long one takes long."""
    first = int(bool(messages) and messages[0].role == "system")
    turns = [first, *(at for at, message in enumerate(messages) if message.role == "user" and at > first)]

    def without(count: int) -> tuple[list[Message], Size]:
        kept = [*messages[:first], *messages[turns[count] :]]
        return kept, size(kept)

    whole = without(0)
    if len(turns) == 1 or fits(*whole):
        return whole
    return without(bisect_left(range(len(turns) - 1), True, 1, key=lambda count: fits(*without(count))))


def _calls(message: Message, last: Token) -> bool:
    """Whether an answer asks for a tool: it must have ended by itself, for half a call is none."""
    return bool(message.tool_calls) and last.stopped_by == "end"


def following(sampling: Sampling, calls_made: int, written: int) -> Sampling:
    """For the answer after each call: random numbers of its own, no call that must come, and the tokens that are left.

    Raises UsageError where none are.
    """
    if calls_made and sampling.constraint is not None:
        sampling = replace(sampling, constraint=replace(sampling.constraint, required=False))
    seed = None if sampling.seed is None else sampling.seed + calls_made
    least = max(0, sampling.min_tokens - written)
    return replace(sampling, seed=seed, min_tokens=least, max_tokens=sampling.max_tokens - written)
