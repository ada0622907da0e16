"""/v1/responses: OpenAI's newer way to ask, in which the server can remember what was said.

What is stored stays in memory, the newest KEPT of them, and only who made it (`request.state.user`) finds it again.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from liuli.engine import Event, Token
from liuli.server.chat_completions import Said, form_of
from liuli.server.desk import Desk, Started
from liuli.server.errors import ApiError
from liuli.server.openapi import describes
from liuli.server.replies import CallOut, Deleted, InputTokens, ResponseOut
from liuli.server.streaming import batches, respond, sse
from liuli.server.wire import (
    IGNORED,
    Choice,
    Drawn,
    FunctionSpec,
    Items,
    PartIn,
    PlainFormat,
    SchemaText,
    Strict,
    ToolName,
    Tools,
    check_options,
    plain,
    read_body,
    salt_of,
    tools_of,
)
from liuli.text import Message, ToolCall

KEPT, KEPT_CHARACTERS = 1000, 2**25  # responses, each with its conversation
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


# --- what comes in ---------------------------------------------------------------------------------------------------


class MessageItem(Strict):
    """A message. What our own output items hold besides is accepted and not read."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[PartIn]
    id: str | None = None
    status: str | None = None
    phase: None = None


class CallItem(Strict):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: str
    name: ToolName
    arguments: str
    id: str | None = None
    status: str | None = None


class OutputItem(Strict):
    """What the client's function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Items[PartIn]
    id: str | None = None
    status: str | None = None


class FunctionTool(FunctionSpec):
    """A function, in this API without a layer of its own."""

    type: Literal["function"]


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    name: ToolName


class TextIn(Strict):
    """The form of the answer's text."""

    format: Annotated[PlainFormat | SchemaText, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class StreamTold(Strict):
    """Options of a stream."""

    include_obfuscation: bool | None = None


class InputRequest(Strict):
    """POST /v1/responses/input_tokens: what is read, without an answer."""

    model: str = ""
    input: str | Items[MessageItem | CallItem | OutputItem] = Field(default="")
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: Items[FunctionTool] | None = None
    tool_choice: Choice | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextIn | None = None

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "conversation": (),
        "reasoning": (),
        "truncation": ("disabled",),
        "personality": (),
    }

    def said(self, before: Sequence[Message]) -> list[Message]:
        """The conversation: instructions (these only, not those before), what was said before, the input."""
        system = [Message("system", self.instructions)] if self.instructions else []
        given: list[Message] = [*before]
        for item in [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input:
            if isinstance(item, MessageItem):
                given.append(Message("system" if item.role == "developer" else item.role, plain(item.content)))
            elif isinstance(item, OutputItem):
                given.append(Message("tool", plain(item.output), tool_call_id=item.call_id))
            elif given and given[-1].role == "assistant":  # calls of one answer are one message
                call = ToolCall(item.name, item.arguments, item.call_id)
                given[-1] = replace(given[-1], tool_calls=(*given[-1].tool_calls, call))
            else:
                given.append(Message("assistant", tool_calls=(ToolCall(item.name, item.arguments, item.call_id),)))
        if not given or given[-1].role == "assistant" or (isinstance(self.input, str) and not self.input):
            raise ApiError(400, "`input` ends with nothing to answer.", param="input")
        return [*system, *given]

    def chosen_tools(self) -> Tools:
        """Who runs which tools."""
        choice = f"={self.tool_choice.name}" if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        return tools_of(self.tools, choice, parallel=self.parallel_tool_calls is not False)


class ResponseRequest(InputRequest, Drawn):
    """POST /v1/responses."""

    max_output_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamTold | None = None
    include: Items[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    metadata: Metadata | None = Field(default=None, max_length=16)

    ignored = tuple(name for name in IGNORED if name != "metadata")
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "access_programs": (),
        "background": (False,),
        "background_options": (),
        "context_management": (),
        "conversation": (),
        "image": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "reasoning": (),
        "truncation": ("disabled",),
    }

    @property
    def logprobs(self) -> bool:
        """Whether the tokens' log-probabilities are told."""
        return bool(self.include) or bool(self.top_logprobs)

    def choice_told(self) -> Any:
        """`tool_choice` as the response repeats it."""
        return self.tool_choice.model_dump() if isinstance(self.tool_choice, NamedTool) else self.tool_choice or "auto"


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """A response, who made it, and the conversation it ended (without instructions)."""

    user: str
    response: dict[str, Any]
    messages: tuple[Message, ...]


class Shelf:
    """The newest responses, by their ids. most, most_characters: of all of them, as they are written down."""

    def __init__(self, most: int = KEPT, most_characters: int = KEPT_CHARACTERS) -> None:
        self.most, self.most_characters = most, most_characters
        self.kept: OrderedDict[str, Stored] = OrderedDict()
        self.sizes: dict[str, int] = {}

    def put(self, stored: Stored) -> None:
        self.kept[stored.response["id"]], self.sizes[stored.response["id"]] = stored, len(repr(stored))
        while len(self.kept) > self.most or sum(self.sizes.values()) > self.most_characters:
            self.drop(next(iter(self.kept)))

    def drop(self, id: str) -> None:
        del self.kept[id], self.sizes[id]

    def get(self, id: str, user: str, param: str | None = None) -> Stored:
        """What was stored; ApiError 404, the same for another user's as for none."""
        found = self.kept.get(id)
        if found is None or found.user != user:
            raise ApiError(404, f"There is no response {id[:80]!r}.", param=param, code="response_not_found")
        return found


# --- what goes out ---------------------------------------------------------------------------------------------------


def response_routes(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/v1/responses")
    shelf = Shelf()

    def before(asked: InputRequest, user: str) -> tuple[Message, ...]:
        id = asked.previous_response_id
        return shelf.get(id, user, "previous_response_id").messages if id else ()

    @routes.post("", **describes(ResponseRequest, ResponseOut, stream=True))
    async def create(request: Request) -> Response:
        asked, user = await read_body(request, ResponseRequest), request.state.user
        messages = asked.said(before(asked, user))
        check_options(asked.stream_options, asked.stream)
        try:
            form, tools = form_of(asked.text.format if asked.text else None, asked.chosen_tools())
            sampling = asked.sampling(asked.top_logprobs or 0, asked.max_output_tokens, form)
            answer = desk.answer(
                tools.told(messages),
                sampling,
                tools.here,
                stage=desk.stage_of(asked.model),
                declared=tools.names,
                salt=salt_of(request, asked),
            )
            history = messages[1:] if asked.instructions else messages
            reply = Reply(asked, asked.model or desk.keeper.name, tools.names, user, history, shelf)
            return await respond(
                request, reply, [answer], bool(asked.stream), lambda error: told([reply.failed(error)])
            )
        except ApiError as error:
            error.param = {"response_format": "text.format", "messages": "input"}.get(error.param or "", error.param)
            raise

    @routes.post("/input_tokens", **describes(InputRequest, InputTokens))
    async def input_tokens(request: Request) -> InputTokens:
        asked = await read_body(request, InputRequest)
        messages = asked.chosen_tools().told(asked.said(before(asked, request.state.user)))
        count = await desk.ask(desk.stage_of(asked.model), lambda voice: voice.prompt_tokens(messages))
        return {"object": "response.input_tokens", "input_tokens": count}

    @routes.get("/{id}", **describes(None, ResponseOut))
    async def retrieve(request: Request, id: str) -> dict[str, Any]:
        if "stream" in request.query_params:
            raise ApiError(400, "A response that is over is not streamed again.", param="stream")
        return shelf.get(id, request.state.user).response

    @routes.delete("/{id}", **describes(None, Deleted))
    async def delete(request: Request, id: str) -> Deleted:
        shelf.get(id, request.state.user)
        shelf.drop(id)
        return {"id": id, "object": "response", "deleted": True}

    return routes


def told(events: Sequence[dict[str, Any]]) -> bytes:
    """Events as they are sent."""
    return b"".join(sse(event, event["type"]) for event in events)


class Reply:
    """One response as it is written: its events, the last of which holds all of it."""

    def __init__(
        self,
        asked: ResponseRequest,
        model: str,
        declared: Sequence[str],
        user: str,
        history: Sequence[Message],
        shelf: Shelf,
    ) -> None:
        self.asked, self.declared, self.user, self.shelf = asked, declared, user, shelf
        self.messages = list(history)  # grows by what is produced
        self.said, self.text, self.logprobs = Said(), "", list[Any]()
        self.remembered = ""  # of the text, for the message that ends the conversation
        self.message: dict[str, Any] | None = None
        self.number = 0
        self.response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": float(int(time.time())),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "store": asked.store is not False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}}
            | (asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}),
            "tool_choice": asked.choice_told(),
            "tools": [tool_told(tool) for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p or 1.0,
            "truncation": "disabled",
            "usage": None,
        }

    async def whole(self, answers: Sequence[AsyncIterator[Started | Event]]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        async for batch in batches(answers):
            self.take(batch)
            self.news()
        self.end()
        return self.response

    async def chunks(
        self, firsts: Sequence[Started | Event], answers: Sequence[AsyncIterator[Started | Event]]
    ) -> AsyncIterator[bytes]:
        """Server-sent events, those of one moment together."""
        self.take(list(enumerate(firsts)))
        yield told([self.event(kind, response=dict(self.response)) for kind in ("created", "in_progress")])
        async with aclosing(batches(answers)) as news_of_all:
            async for batch in news_of_all:
                self.take(batch)
                if events := self.news():
                    yield told(events)
        yield told(self.end())

    def take(self, batch: Sequence[tuple[int, Started | Event]]) -> None:
        most = 1 if self.asked.parallel_tool_calls is False else 128
        for _, event in batch:
            self.said.take(event, self.declared, most, self.asked.logprobs)
            if isinstance(event, Token):
                self.remembered += event.text
            elif isinstance(event, Message) and not self.said.calls:
                self.messages.append(event)
                self.remembered = ""  # what was said before a call is in its message

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number - 1, **fields}

    def news(self) -> list[dict[str, Any]]:
        """Events for the text that has come since the last time."""
        text, logprobs = self.said.text, self.said.logprobs
        self.said.text, self.said.logprobs = "", []
        if not text and not logprobs:
            return []
        self.text += text
        self.logprobs += logprobs
        events = [] if self.message else self.open()
        return [*events, self.event("output_text.delta", delta=text, logprobs=logprobs, **self.place())]

    def open(self) -> list[dict[str, Any]]:
        """The message begins."""
        self.message = {"id": f"msg_{secrets.token_hex(24)}", "type": "message", "role": "assistant",
                        "status": "in_progress", "content": []}  # fmt: skip
        return [
            self.event("output_item.added", output_index=0, item=dict(self.message)),
            self.event("content_part.added", part=self.part("", []), **self.place()),
        ]

    def place(self) -> dict[str, Any]:
        assert self.message is not None
        return {"item_id": self.message["id"], "output_index": 0, "content_index": 0}

    def part(self, text: str, logprobs: list[Any]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def end(self) -> list[dict[str, Any]]:
        """The last events; the response is then whole, and kept if that was not forbidden."""
        cut = self.said.finish == "length"
        events = self.open() if self.message is None and not self.said.calls else []
        if self.message:
            part = self.part(self.text, self.logprobs)
            self.message |= {"status": "incomplete" if cut else "completed", "content": [part]}
            self.message |= {"steps": self.said.steps} if self.said.steps else {}
            self.response["output"].append(self.message)
            events += [
                self.event("output_text.done", text=self.text, logprobs=self.logprobs, **self.place()),
                self.event("content_part.done", part=part, **self.place()),
                self.event("output_item.done", output_index=0, item=self.message),
            ]
        for call in self.said.calls:
            events += self.called(call)
        calls = tuple(ToolCall(c["function"]["name"], c["function"]["arguments"], c["id"]) for c in self.said.calls)
        self.messages.append(Message("assistant", self.remembered, calls))
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": float(int(time.time())),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": usage_out(self.said),
        }
        if self.response["store"]:
            self.shelf.put(Stored(self.user, self.response, tuple(self.messages)))
        return [*events, self.event("incomplete" if cut else "completed", response=self.response)]

    def called(self, call: CallOut) -> list[dict[str, Any]]:
        """The events of one call."""
        index, arguments = len(self.response["output"]), call["function"]["arguments"]
        item = {"id": f"fc_{secrets.token_hex(24)}", "type": "function_call", "call_id": call["id"],
                "name": call["function"]["name"], "arguments": arguments, "status": "completed"}  # fmt: skip
        self.response["output"].append(item)
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        return [
            self.event("output_item.added", output_index=index, item=begun),
            self.event("function_call_arguments.delta", delta=arguments, **place),
            self.event("function_call_arguments.done", arguments=arguments, name=item["name"], **place),
            self.event("output_item.done", output_index=index, item=item),
        ]

    def failed(self, error: ApiError) -> dict[str, Any]:
        """The last event of a response that broke."""
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": error.message}}
        return self.event("failed", response=self.response)


def usage_out(said: Said) -> dict[str, Any]:
    """Tokens read and written."""
    return {
        "input_tokens": said.prompt_tokens,
        "input_tokens_details": {"cached_tokens": said.reused, "cache_write_tokens": 0},
        "output_tokens": said.tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": said.prompt_tokens + said.tokens,
    }


def tool_told(tool: FunctionTool) -> dict[str, Any]:
    """A tool as the response repeats it."""
    return {"strict": None, "parameters": None, **tool.model_dump()}
