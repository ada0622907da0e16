"""Conversations: messages in, messages out, with tool calls run in between.

An answer that calls a tool is followed by the tool's message, and the model goes on; at most MAX_CALLS times.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from liuli.engine.answer import Answer, Token
from liuli.engine.engine import Engine, Request, hides
from liuli.engine.sampling import Sampling
from liuli.engine.tools import TOOLS, Tool, run_call
from liuli.errors import LiuliError
from liuli.text.chat import Message, Messages, as_messages, parse_answer, render
from liuli.text.tokenizer import Tokenizer

MAX_CALLS = 4
REMEMBERED = 4  # questions before the last one that go only where not even a short answer has room
T = TypeVar("T", Token, Token | None)
Size = TypeVar("Size")


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
        yield from (event for event in polled if event is not None)


def polled_reply(
    engine: Streams,
    messages: Messages,
    sampling: Sampling,
    tools: Mapping[str, Tool] = TOOLS,
    declared: Collection[str] = (),
    **more: Any,
) -> Generator[Token | Message | None, None, tuple[str, int]]:
    """`reply`, for one thread that serves many: None where what comes next is not there yet, and others may go on.

    declared: tools that are run elsewhere: a message that calls one is the last. Returns why it ended ("call" there)
    and how many tokens were written in all, also those that are not shown.
    """
    history = list(as_messages(messages))
    last: Token | None = None
    written = 0
    for calls_made in range(MAX_CALLS + 1):
        try:
            next_sampling = following(sampling, calls_made, written)
            prompt = fit(history, engine, next_sampling)
        except LiuliError:
            if last is None:
                raise
            yield replace(last, text="", stopped_by="length")  # after the tool's result there is no room for more
            return "length", written
        tokens: list[Token] = []
        stream = engine.poll(prompt, next_sampling, conversation=True, **more)
        for token, hidden in _with_hidden(stream, engine.tokenizer):
            if token is None:
                yield None
                continue
            tokens.append(token)
            if token.stopped_by is not None:
                last = replace(token, text="") if hidden else token
            elif not hidden:
                yield token
        written += len(tokens)
        message = parse_answer([token.id for token in tokens], engine.tokenizer)
        if last is not None and not (calls_made < MAX_CALLS and _calls(message, last)):
            yield last
            return last.stopped_by or "end", written
        if any(call.name in declared for call in message.tool_calls):
            yield message
            return "call", written
        produced = [message, *answer_calls(message, tools)]
        yield from produced
        history += produced
    return "end", written


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
            shown = (token.text for token, hidden in _with_hidden(answer.tokens, engine.tokenizer) if not hidden)
            message = replace(message, content="".join(shown))
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


def _with_hidden(tokens: Iterable[T], tokenizer: Tokenizer) -> Iterator[tuple[T, bool]]:
    """Each token, and whether its text belongs to a call or a thought; that of a control token is from before it."""
    hidden = False
    for token in tokens:
        yield token, hidden
        hidden = hidden if token is None else hides(token.id, hidden, tokenizer)


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
