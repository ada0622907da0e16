"""Voices: what every app talks to. Messages in; tokens, messages of calls and tools, and an end out.

Whether our engine computes the answer here or a server elsewhere does is the voice's own affair. Our tools are run here
in every case. (This file, unlike the rest of the room, needs torch, so the front door does not open on it.)
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from liuli.engine import TOOLS, Model, Sampling, Token, reply
from liuli.text import Message, render


@dataclass(frozen=True)
class Ended:
    """An answer's last event: why it ended ("end", "stop", "length", "error") and how many tokens it took in all."""

    stopped_by: str
    tokens: int


Event = Token | Message | Ended


class Voice(Protocol):
    """What answers. `context` is in tokens."""

    context: int

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt for these messages has."""

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, tools: Sequence[str]
    ) -> Generator[Event, None, None]:
        """The answer as it comes; Ended is always last."""

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for."""


class ModelVoice:
    """A model folder behind the engine."""

    def __init__(self, path: Path) -> None:
        model = Model(path)
        self.tokenizer, self.engine = model.tokenizer, model.engine
        self.context = model.engine.context

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt for these messages has."""
        return len(render(list(messages), self.tokenizer, answer=True).tokens)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for."""
        return self.tokenizer.bytes_of(token)

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, tools: Sequence[str]
    ) -> Generator[Event, None, None]:
        """The engine's reply, its tools among those named."""
        chosen = {name: TOOLS[name] for name in tools}
        count, stopped_by = 0, "end"
        for event in reply(self.engine, list(messages), sampling, chosen):
            if isinstance(event, Token):
                count, stopped_by = count + 1, event.stopped_by or stopped_by
            elif event.role == "assistant":  # the tokens of a call are not among those the engine shows
                count += sum(len(self.tokenizer.encode(f"{c.name} {c.arguments}")) + 1 for c in event.tool_calls)
            yield event
        yield Ended(stopped_by, count)
