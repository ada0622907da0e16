"""The model that answers now: loaded from a folder, replaced when a run makes a newer one.

In: a model folder or a run folder. Out: a `Voice`, something that turns messages into tokens. HTTP knows only voices,
so tests speak with a scripted one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from liuli.engine import TOOLS, Model, Sampling, Token, reply
from liuli.errors import LiuliError
from liuli.server.runs import ModelFile, check_servable, is_model_folder, models_in, read_json
from liuli.text import Message, render

LOG = logging.getLogger("liuli.server")
FRESH_SECONDS = 90.0  # a run whose status.json is older than this is not training any more


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


class Keeper:
    """Knows which model of PATH is the newest and keeps it loaded. `voice` is for the worker's thread only."""

    def __init__(self, path: Path, load: Callable[[Path], Voice] = ModelVoice) -> None:
        check_servable(path)
        self.path = path
        self.run = None if is_model_folder(path) else path
        self.name = path.resolve().name
        self.current: ModelFile | None = None
        self._load = load
        self._voice: Voice | None = None
        self._broken: set[tuple[Path, float]] = set()

    def newest(self) -> ModelFile | None:
        """The model to serve, or None before the first one exists; reads folder names only."""
        if self.run is None:
            about = read_json(self.path / "liuli.json") or {}
            made = (self.path / "config.json").stat().st_mtime
            return ModelFile(self.path, str(about.get("stage", "")), int(about.get("step") or 0), True, made)
        return next((m for m in models_in(self.run) if (m.path, m.made) not in self._broken), None)

    def voice(self) -> Voice | None:
        """The newest model, loaded if it was not; None before the first one exists.

        In a run, a model that cannot be read (just pruned, or damaged) is passed over for the next best one.
        """
        while (newest := self.newest()) is not None and newest != self.current:
            try:
                self._voice, self.current = self._load(newest.path), newest
            except (LiuliError, OSError) as error:
                if self.run is None:
                    raise
                if newest.path.exists():
                    LOG.warning("%s is passed over: %s", newest.path, error)
                self._broken.add((newest.path, newest.made))
        return self._voice

    def bytes_of(self, id: int, text: str) -> bytes:
        """The bytes of a token of the current model; those of `text` for a control token."""
        return (self._voice.bytes_of(id) if self._voice is not None else b"") or text.encode()

    def is_training(self) -> bool:
        """Whether a build is writing this run folder right now."""
        status = read_json(self.run / "status.json") if self.run else None
        if not status or status.get("state") != "running":
            return False
        try:
            return time.time() - (self.path / "status.json").stat().st_mtime < FRESH_SECONDS
        except OSError:
            return False

    def about(self) -> dict[str, Any] | None:
        """What the page says of the model that answers: its folder's name, stage, step, when it was made."""
        model = self.current or self.newest()
        if model is None:
            return None
        return {
            "name": model.path.name,
            "stage": model.stage,
            "step": model.step,
            "finished": model.finished,
            "made": model.made,
        }
