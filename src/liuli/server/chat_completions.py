"""POST /v1/chat/completions: messages in, an answer out, whole or as it is written.

Who runs a tool: the server its own, where the request names none or names them without parameters; their calls and
results are in `choices[].message.steps` (in a stream `choices[].delta.steps`), which clients that do not know the field
skip. The client all others: the answer ends with `tool_calls`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from liuli.assistant.remote import as_dict
from liuli.engine import Ended, Event, Token
from liuli.engine.constraints import Constraint
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.openapi import describes
from liuli.server.replies import (
    AnswerMessage,
    CallOut,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    OtherToken,
    TokenLogprob,
    Usage,
)
from liuli.server.streaming import DONE, batches, respond, sse
from liuli.server.wire import (
    IGNORED,
    MOST_CHOICES,
    Choice,
    ChosenTool,
    Form,
    Items,
    Knobs,
    PlainFormat,
    SchemaFormat,
    StreamOptions,
    ToolIn,
    Tools,
    check_options,
    read_body,
    salt_of,
    tools_of,
)
from liuli.text import SPECIALS, ToolCall

CONTROLS = frozenset(name.encode() for name in SPECIALS)
LOWEST_LOGPROB = -9999.0  # OpenAI's way to write minus infinity, which JSON has no word for


class ChatRequest(Knobs):
    """POST /v1/chat/completions."""

    model: str = ""
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None
    tools: Items[ToolIn] | None = None
    tool_choice: Choice | ChosenTool | None = None
    parallel_tool_calls: bool | None = None

    ignored = IGNORED
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "modalities": (["text"],),
        "store": (False,),
        "verbosity": ("medium",),
        "reasoning_effort": ("none",),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "moderation": (),
        "functions": (),
        "function_call": ("none", "auto"),
    }

    def chosen_tools(self) -> Tools:
        """Who runs which tools."""
        choice = f"={self.tool_choice.function.name}" if isinstance(self.tool_choice, ChosenTool) else self.tool_choice
        specs = None if self.tools is None else [tool.function for tool in self.tools]
        return tools_of(specs, choice, parallel=self.parallel_tool_calls is not False)

    def check(self) -> None:
        """What single fields cannot say; ApiError."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        check_options(self.stream_options, self.stream)


def form_of(asked: Form | None, tools: Tools) -> tuple[Constraint | None, Tools]:
    """The form an answer must have, and the tools that are left: an answer in a form is no call."""
    if asked is None or asked.type == "text":
        return tools.shape, tools
    if tools.declared:
        message = "`response_format` and `tools` exclude each other here, unless `tool_choice` is 'none'."
        raise ApiError(400, message, param="response_format")
    form = Constraint("json_schema", json.dumps(asked.wanted)) if asked.wanted else Constraint("json_object")
    return replace(form, asked_by="response_format"), Tools()


def chat_routes(desk: Desk) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/chat/completions", **describes(ChatRequest, ChatCompletion, stream=True))
    async def chat_completions(request: Request) -> Response:
        asked = await read_body(request, ChatRequest)
        asked.check()
        stage = desk.stage_of(asked.model)
        form, tools = form_of(asked.response_format, asked.chosen_tools())
        sampling = asked.sampling(asked.top_logprobs or 0, asked.max_completion_tokens, form)
        answers = [
            desk.answer(
                tools.told(asked.conversation()),
                # seeds count up, so that the answers differ and all can be had again
                sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index),
                tools.here,
                stage=stage,
                declared=tools.names,
                salt=salt_of(request, asked),
            )
            for index in range(asked.n or 1)
        ]
        reply = Reply(asked, asked.model or desk.keeper.name, tools.names)
        return await respond(request, reply, answers, bool(asked.stream))

    return routes


@dataclass
class Said:
    """What one answer has said so far. `sent` is how much of it a stream has told."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    calls: list[CallOut] = field(default_factory=list)
    finish: Literal["stop", "length", "tool_calls"] | None = None
    over: bool = False
    prompt_tokens: int = 0
    tokens: int = 0
    reused: int = 0
    seed: int = 0
    fingerprint: str = ""
    bytes_of: Callable[[int], bytes] = lambda _: b""

    def take(self, event: Started | Event, declared: Sequence[str], most_calls: int, with_logprobs: bool) -> None:
        """Add one event."""
        if isinstance(event, Token):
            self.text += event.text
            if with_logprobs:
                self.logprobs.append(logprob_out(self.bytes_of, event))
        elif isinstance(event, Started):
            self.prompt_tokens, self.bytes_of, self.seed = event.prompt_tokens, event.bytes_of, event.seed
            self.fingerprint = fingerprint(event)
        elif isinstance(event, Ended):
            self.tokens, self.reused, self.finish, self.over = event.tokens, event.reused, finish_reason(event), True
        elif any(call.name in declared for call in event.tool_calls):
            self.calls += [call_out(call) for call in event.tool_calls[:most_calls]]
        else:
            self.steps.append(as_dict(event))


class Reply:
    """One request's answers in OpenAI's shape."""

    def __init__(self, asked: ChatRequest, model: str, declared: Sequence[str]) -> None:
        self.asked, self.declared = asked, declared
        self.most_calls = 1 if asked.parallel_tool_calls is False else 128
        self.head = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": model}
        self.said = [Said() for _ in range(asked.n or 1)]

    def take(self, index: int, event: Started | Event) -> None:
        self.said[index].take(event, self.declared, self.most_calls, bool(self.asked.logprobs))

    async def whole(self, answers: Sequence[AsyncIterator[Started | Event]]) -> ChatCompletion:
        """The response of a request that does not stream."""
        async for batch in batches(answers):
            for index, event in batch:
                self.take(index, event)
        return {
            **self.head,  # type: ignore[typeddict-item]
            "object": "chat.completion",
            "system_fingerprint": self.said[0].fingerprint,
            "choices": [self.choice(index, said) for index, said in enumerate(self.said)],
            "usage": self.usage(),
        }

    def choice(self, index: int, said: Said) -> ChatChoice:
        message: AnswerMessage = {"role": "assistant", "content": said.text, "refusal": None}
        if said.calls:
            message["tool_calls"], message["content"] = said.calls, said.text or None
        if said.steps:
            message["steps"] = said.steps
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs(said),
            "finish_reason": said.finish or "stop",
            "seed": said.seed,
        }

    def logprobs(self, said: Said) -> ChatLogprobs | None:
        return {"content": said.logprobs, "refusal": None} if self.asked.logprobs else None

    def usage(self) -> Usage:
        return usage(self.said[0].prompt_tokens, sum(said.tokens for said in self.said))

    async def chunks(
        self, firsts: Sequence[Started | Event], answers: Sequence[AsyncIterator[Started | Event]]
    ) -> AsyncIterator[bytes]:
        """Server-sent events: role, content …, finish for each answer; then usage if asked for; then [DONE].

        The first go out with the first token, the last with the last one: each sending costs as much as many tokens.
        """
        with_usage = bool(self.asked.stream_options and self.asked.stream_options.include_usage)
        for index, first in enumerate(firsts):
            self.take(index, first)
        base = {**self.head, "object": "chat.completion.chunk", "system_fingerprint": self.said[0].fingerprint}
        base |= {"usage": None} if with_usage else {}

        def chunk(index: int, delta: dict[str, Any], **more: Any) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            return sse({**base, "choices": [choice]})

        parts = [chunk(index, {"role": "assistant", "content": "", "refusal": None}) for index in range(len(self.said))]
        async with aclosing(batches(answers)) as news_of_all:
            async for batch in news_of_all:
                for index, event in batch:
                    self.take(index, event)
                news = [chunk(index, **part) for index in {index for index, _ in batch} for part in self.news(index)]
                parts += news
                if news and not all(said.over for said in self.said):
                    yield b"".join(parts)
                    parts = []
        parts.append(sse({**base, "choices": [], "usage": self.usage()}) if with_usage else b"")
        yield b"".join(parts) + DONE

    def news(self, index: int) -> list[dict[str, Any]]:
        """What an answer has said since the last time, in the order that clients read it; it is forgotten then."""
        said = self.said[index]
        parts: list[dict[str, Any]] = []
        delta: dict[str, Any] = {"content": said.text} if said.text else {}
        delta |= {"steps": said.steps} if said.steps else {}
        if delta or said.logprobs:
            parts.append({"delta": delta, "logprobs": self.logprobs(said)})
        for number, call in enumerate(said.calls):
            function = call["function"]
            name = {"name": function["name"], "arguments": ""}
            parts.append({"delta": {"tool_calls": [{"index": number, **call, "function": name}]}})
            rest = {"arguments": function["arguments"]}
            parts.append({"delta": {"tool_calls": [{"index": number, "function": rest}]}})
        if said.finish:
            parts.append({"delta": {}, "finish_reason": said.finish, "seed": said.seed})
        said.text, said.logprobs, said.steps, said.calls, said.finish = "", [], [], [], None
        return parts


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """OpenAI's count of tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def finish_reason(event: Ended) -> Literal["stop", "length", "tool_calls"]:
    """OpenAI's word for how an answer ended."""
    words: dict[str, Literal["length", "tool_calls"]] = {"length": "length", "call": "tool_calls"}
    return words.get(event.stopped_by, "stop")


def fingerprint(event: Started) -> str:
    """Which weights answered: in a run, they change under one name."""
    return f"{event.model.get('name', '')}@{int(event.model.get('made', 0))}"


def call_out(call: ToolCall) -> CallOut:
    """A call with an id of its own; the model's count per answer."""
    function: Any = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def logprob_out(bytes_of: Callable[[int], bytes], token: Token) -> TokenLogprob:
    """A token's log-probability and its alternatives', in OpenAI's shape; a control token's bytes are its name's."""

    def one(id: int, text: str, logprob: float) -> OtherToken:
        spelt = bytes_of(id) or text.encode()
        shown = text or (spelt.decode() if spelt in CONTROLS else "")
        return {"token": shown, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(spelt)}

    top = [one(other.id, other.text, other.logprob) for other in token.alternatives]
    return {**one(token.id, token.text, token.logprob), "top_logprobs": top}
