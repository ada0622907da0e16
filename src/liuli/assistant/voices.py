"""Voices: what every app talks to. Messages in; tokens, messages of calls and tools, and an end out.

Whether our engine computes the answer here or a server elsewhere does is the voice's own affair. Our tools are run here
in every case. (This file, unlike the rest of the room, needs torch, so the front door does not open on it.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from liuli.engine import TOOLS, Ended, Engine, Event, Model, Sampling, Token
from liuli.engine.answer import likeliest
from liuli.engine.chat import Streams, polled_reply
from liuli.text import Message, render

SCORED_AT_ONCE = 512  # positions of a prompt: bounds the memory for log-probabilities of the whole vocabulary


class Voice(Protocol):
    """What answers. `context` is in tokens. blocks: a reply makes who reads it wait, and gives nobody else a turn."""

    context: int
    blocks: bool

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt for these messages has."""

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, tools: Sequence[str], declared: Collection[str] = ()
    ) -> Generator[Event | None, None, None]:
        """The answer as it comes; Ended is always last. None: nothing is there yet, and others may have their turn.

        declared: tools that are run elsewhere; a message that calls one is followed by Ended("call"). Raises UsageError
        before anything comes for what it cannot do.
        """

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for; those of its name where it is a control token."""


class EngineVoice:
    """Any engine that writes with our tokens, wherever its weights are. blocks: it waits for another machine."""

    def __init__(self, engine: Streams, blocks: bool = False) -> None:
        self.engine, self.tokenizer, self.context, self.blocks = engine, engine.tokenizer, engine.context, blocks

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens the prompt for these messages has."""
        return len(render(list(messages), self.tokenizer, answer=True).tokens)

    def bytes_of(self, token: int) -> bytes:
        """The bytes a token stands for; those of its name where it is a control token."""
        return self.tokenizer.bytes_of(token) or self.tokenizer.decode([token]).encode()

    def reply(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        tools: Sequence[str],
        declared: Collection[str] = (),
        **more: Any,
    ) -> Generator[Event | None, None, None]:
        """The engine's reply, its tools among those named. more: salt and deadline."""
        chosen = {name: TOOLS[name] for name in tools}
        return polled_reply(self.engine, messages, sampling, chosen, declared, **more)


class ModelVoice(EngineVoice):
    """A model folder behind our engine: its weights are here. how: weights, compiled, draft, prefix_int8, replicas of
    Model."""

    engine: Engine

    def __init__(self, path: Path, device: str | None = None, **how: Any) -> None:
        super().__init__(Model(path, device, **how).engine)

    def write(self, prompt: Sequence[int], sampling: Sampling, **more: Any) -> Generator[Event | None, None, None]:
        """What goes on after these tokens, which need not be a conversation."""
        count = 0
        for token in self.engine.poll(prompt, sampling, **more):
            yield token
            count += token is not None
            if token is not None and token.stopped_by is not None:
                yield Ended(token.stopped_by, count, token.reused)

    @torch.inference_mode()
    def score(self, tokens: Sequence[int], alternatives: int) -> list[Token]:
        """The tokens with their log-probabilities (NaN for the first, before which is nothing) and the likeliest ones
        that could have stood there; their texts stay empty.
        """
        model = self.engine.model
        hidden_TD = model.hidden(torch.tensor([list(tokens)], device=self.engine.device))[0, :-1]
        scored = [Token(tokens[0], "", math.nan)]
        for start in range(0, len(hidden_TD), SCORED_AT_ONCE):
            logprobs_TV = torch.log_softmax(model.logits(hidden_TD[start : start + SCORED_AT_ONCE]).float(), dim=-1)
            nexts = list(tokens[start + 1 : start + 1 + len(logprobs_TV)])
            chosen = logprobs_TV.gather(1, torch.tensor(nexts, device=logprobs_TV.device)[:, None])[:, 0].tolist()
            others = likeliest(logprobs_TV, self.engine.names, [alternatives] * len(nexts))
            scored += [Token(id, "", *found) for id, *found in zip(nexts, chosen, others, strict=True)]
        return scored

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int], skip: int = 0) -> list[float]:
        """The mean of the last hidden states (after the final norm) over the tokens from `skip` on; D numbers."""
        hidden_TD = self.engine.model.hidden(torch.tensor([list(tokens)], device=self.engine.device))[0]
        mean: list[float] = hidden_TD[skip:].float().mean(0).tolist()
        return mean
