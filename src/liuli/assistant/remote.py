"""A voice behind any OpenAI-compatible endpoint: chat completions, streamed; our tools run here.

In: messages. Out: what every voice gives. Nothing is known of the model but its name: what cannot be passed on is
refused, lengths of prompts are estimated, and ids of tokens are numbers that this voice makes up for the bytes it is
told.

Requests, events: https://platform.openai.com/docs/api-reference/chat/create and …/chat-streaming.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from liuli.engine import TOOLS, Alternative, Event, Sampling, StoppedBy, TextStream, Token, Tool
from liuli.engine.chat import Said, with_calls
from liuli.engine.http import ask, ask_stream
from liuli.errors import LiuliError, UsageError
from liuli.text import Message, ToolCall

ALWAYS = ("temperature", "top_p", "max_tokens", "seed")
OFTEN = ("presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos")
OURS = ("stop", "constraint", "alternatives")  # fields of Sampling that are turned into others
MOST_ALTERNATIVES = 20  # OpenAI's top_logprobs
UNKNOWN_CONTEXT = 32_768  # tokens, where the server does not tell
BYTES_PER_TOKEN = 3  # fewer than most tokenizers need, so that an estimate is on the safe side
# what some models refuse; asked again without, or under its newer name
REFUSALS = ("logprobs", "max_completion_tokens", "stream_options")


@dataclass
class _Heard:
    """One answer as its events come. calls: by their index, the pieces of id, name and arguments."""

    content: str = ""
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    finish: str | None = None
    stop: Any = None  # the stop string that ended it, where the server tells (vLLM)
    usage: int | None = None
    shown: int = 0

    def whole(self) -> Said:
        calls = [ToolCall(c["name"], c["arguments"] or "{}", c["id"] or f"call_{n}") for n, c in self.calls.items()]
        why: StoppedBy = "length" if self.finish == "length" else "stop" if isinstance(self.stop, str) else "end"
        count = self.shown if self.usage is None else self.usage
        return Said(Message("assistant", self.content, tuple(calls)), Token(0, "", 0.0, stopped_by=why), count)


class RemoteVoice:
    """model: its name there; "": the first that the server lists. key: sent as a bearer token.

    Raises LiuliError where there is no server. `logprob` is 0 in tokens of a server that does not tell.
    """

    blocks = True

    def __init__(self, url: str, model: str = "", key: str | None = None) -> None:
        base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self.url, self.key = f"{base}/chat/completions", key
        listed = [entry for entry in ask(f"{base}/models", key=key).get("data") or () if isinstance(entry, dict)]
        about = next((entry for entry in listed if entry.get("id") == model or not model), {})
        self.name = model or str(about.get("id") or "")
        if not self.name:
            raise UsageError("the server lists no model", base, "name one")
        self.context = int(about.get("max_model_len") or about.get("context_length") or UNKNOWN_CONTEXT)
        self._pieces, self._ids = [b""], {b"": 0}
        self._refused: set[str] = set()

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """About how many tokens the prompt has, rather too many."""
        texts = [message.content + "".join(call.arguments for call in message.tool_calls) for message in messages]
        return sum(len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 4 for text in texts)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for; none for what the server told without its tokens."""
        return self._pieces[token]

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, tools: Sequence[str], declared: Collection[str] = ()
    ) -> Generator[Event | None, None, None]:
        """The answer as it comes; calls of our tools are run and the model goes on, at most MAX_CALLS times."""
        chosen = {name: TOOLS[name] for name in tools}

        def say(history: list[Message], sampling: Sampling) -> Generator[Token | None, None, Said]:
            return self._say(self._asked(sampling, chosen) | {"messages": [as_dict(message) for message in history]})

        return with_calls(say, messages, sampling, chosen, declared)

    def _asked(self, sampling: Sampling, tools: Mapping[str, Tool]) -> dict[str, Any]:
        """The request but for its messages."""
        refuse_unless_default(sampling, (*ALWAYS, *OFTEN, *OURS), self.url)
        body: dict[str, Any] = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        body |= {name: value for name in ALWAYS if (value := getattr(sampling, name)) is not None}
        defaults = {each.name: each.default for each in fields(sampling)}
        body |= {name: value for name in OFTEN if (value := getattr(sampling, name)) != defaults[name]}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.alternatives:
            body |= {"logprobs": True, "top_logprobs": min(sampling.alternatives, MOST_ALTERNATIVES)}
        declared = {
            name: {"description": tool.description, "parameters": tool.parameters} for name, tool in tools.items()
        }
        if (constraint := sampling.constraint) is not None:
            match constraint.kind:
                case "json_object":
                    body["response_format"] = {"type": "json_object"}
                case "json_schema":
                    schema = {"name": "answer", "strict": True, "schema": json.loads(constraint.text)}
                    body["response_format"] = {"type": "json_schema", "json_schema": schema}
                case "tools":
                    asked = {name: {"parameters": schema} for name, schema in json.loads(constraint.text).items()}
                    declared = asked | declared
                    body["tool_choice"] = "required" if constraint.required else "auto"
                    body["parallel_tool_calls"] = constraint.parallel
                case kind:
                    raise UsageError(f"this engine does not know the constraint {kind}", self.url, "use --engine liuli")
        if declared:
            functions = [{"name": name, **about} for name, about in declared.items()]
            body["tools"] = [{"type": "function", "function": function} for function in functions]
        return body

    def _say(self, body: dict[str, Any]) -> Generator[Token | None, None, Said]:
        """Ask once; the tokens of what may be shown. Raises LiuliError for half an answer."""
        yield None  # what cannot be asked is told by now
        text, said = TextStream(), _Heard()
        for event in self._events(body):
            if (usage := event.get("usage")) and usage.get("completion_tokens") is not None:
                said.usage = int(usage["completion_tokens"])
            for choice in (event.get("choices") or ())[:1]:
                delta = choice.get("delta") or {}
                if content := delta.get("content") or "":
                    said.content += content
                    for token in self._tokens(content, (choice.get("logprobs") or {}).get("content") or (), text):
                        said.shown += 1
                        yield token
                for piece in delta.get("tool_calls") or ():
                    add_piece(said.calls, piece)
                said.finish, said.stop = choice.get("finish_reason") or said.finish, choice.get("stop_reason")
        if said.finish is None:
            raise LiuliError("the answer breaks off: the server hung up", self.url, "ask again; look at its log")
        return said.whole()

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of an answer, asked for in the words that this server knows."""
        while True:
            asked = dict(body)
            if "max_completion_tokens" in self._refused:
                asked["max_completion_tokens"] = asked.pop("max_tokens")
            if "stream_options" in self._refused:
                del asked["stream_options"]
            if "logprobs" in self._refused:
                asked.pop("logprobs", None), asked.pop("top_logprobs", None)
            try:
                yield from ask_stream(self.url, asked, self.key)
                return
            except LiuliError as error:
                names = REFUSALS if re.match("the server answers 4(00|03|22)", error.what) else ()
                refused = [name for name in names if name in error.what and name not in self._refused]
                if not refused:
                    raise
                self._refused.add(refused[0])

    def _tokens(self, content: str, entries: Sequence[dict[str, Any]], text: TextStream) -> Iterator[Token]:
        """The content of one event as tokens; their texts joined are the content, whatever the server says of each."""
        if not entries:
            yield Token(0, content, 0.0)
            return
        texts = [text.feed(bytes_in(entry)) for entry in entries]
        if "".join(texts) != content:
            texts = [content] + [""] * (len(entries) - 1)
        for entry, shown in zip(entries, texts, strict=True):
            top = entry.get("top_logprobs") or ()
            others = tuple(Alternative(self._id(bytes_in(o)), str(o["token"]), float(o["logprob"])) for o in top)
            yield Token(self._id(bytes_in(entry)), shown, float(entry["logprob"]), others)

    def _id(self, piece: bytes) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._ids[piece]


def bytes_in(entry: dict[str, Any]) -> bytes:
    """The bytes of a token in OpenAI's logprobs."""
    told = entry.get("bytes")
    return bytes(told) if told else str(entry["token"]).encode("utf-8", "replace")


def add_piece(calls: dict[int, dict[str, str]], piece: dict[str, Any]) -> None:
    """Put a piece of a call to what came of it before: its name and id come once, its arguments bit by bit."""
    call = calls.setdefault(int(piece.get("index") or 0), {"id": "", "name": "", "arguments": ""})
    function = piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["name"] = function.get("name") or call["name"]
    call["arguments"] += function.get("arguments") or ""


def as_dict(message: Message) -> dict[str, Any]:
    """A message as every server knows it: without thoughts and what only training needs."""
    known = ("role", "content", "tool_calls", "tool_call_id")
    return {name: value for name, value in message.to_dict().items() if name in known}


def refuse_unless_default(sampling: Sampling, known: Sequence[str], where: str) -> None:
    """Raise UsageError for a setting that would be ignored there."""
    for each in fields(sampling):
        if each.name not in known and getattr(sampling, each.name) != each.default:
            raise UsageError(f"this engine does not know {each.name}", where, "leave it out, or use --engine liuli")
