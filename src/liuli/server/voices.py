"""The models that answer now: loaded from their folders, replaced when a run makes newer ones.

In: a model folder or a run folder. Out: a `Voice` (assistant/voices.py). HTTP knows only voices, so tests speak with a
scripted one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from liuli.assistant.voices import ModelVoice, Voice
from liuli.errors import LiuliError
from liuli.server.runs import ModelFile, check_servable, is_model_folder, models_in, read_json

LOG = logging.getLogger("liuli.server")
FRESH_SECONDS = 90.0  # a run whose status.json is older than this is not training any more
BEFORE_CHAT = "pretrain"  # the stage whose model goes on with any text: it talks while there is no better one


class Keeper:
    """Knows the models of PATH and keeps the newest and one more loaded. `voice` is for the worker's thread only."""

    def __init__(self, path: Path, load: Callable[[Path], Voice] = ModelVoice) -> None:
        check_servable(path)
        self.path = path
        self.run = None if is_model_folder(path) else path
        self.name = path.resolve().name
        self._load = load
        self._loaded: dict[ModelFile, Voice] = {}  # never changed, only replaced: other threads read it
        self._broken: set[tuple[Path, float]] = set()

    def newest(self) -> ModelFile | None:
        """The model to serve, or None before the first one exists; reads folder names only."""
        return next(iter(self._all()), None)

    def models(self) -> list[ModelFile]:
        """What can be asked for by its stage, the newest first: of each stage since the chat the best model."""
        best: dict[str, ModelFile] = {}
        for model in self._all():
            if model.stage != BEFORE_CHAT or self.run is None:
                best.setdefault(model.stage, model)
        return list(best.values())

    def voice(self, stage: str = "") -> tuple[ModelFile, Voice] | None:
        """The newest model, or that of a stage, loaded if it was not; None where there is no such model.

        In a run, a model that cannot be read (just pruned, or damaged) is passed over for the next best one.
        """
        while (wanted := self._best(stage)) is not None:
            if wanted in self._loaded:
                return wanted, self._loaded[wanted]
            try:
                kept = [model for model in self.models() if model in self._loaded][:1]  # at most two are in memory
                self._loaded = {model: self._loaded[model] for model in kept}
                self._loaded = {**self._loaded, wanted: self._load(wanted.path)}
            except (LiuliError, OSError) as error:
                if self.run is None:
                    raise
                if wanted.path.exists():
                    LOG.warning("%s is passed over: %s", wanted.path, error)
                self._broken.add((wanted.path, wanted.made))
        return None

    def loaded(self, name: str) -> ModelFile | None:
        """The model in memory whose folder has this name."""
        return next((model for model in self._loaded if model.path.name == name), None)

    def _all(self) -> list[ModelFile]:
        if self.run is None:
            about = read_json(self.path / "liuli.json") or {}
            made = (self.path / "config.json").stat().st_mtime
            return [ModelFile(self.path, str(about.get("stage", "")), int(about.get("step") or 0), True, made)]
        return [model for model in models_in(self.run) if (model.path, model.made) not in self._broken]

    def _best(self, stage: str) -> ModelFile | None:
        return next((m for m in self.models() if m.stage == stage), None) if stage else self.newest()

    def is_training(self) -> bool:
        """Whether a build is writing this run folder right now."""
        status = read_json(self.run / "status.json") if self.run else None
        if not status or status.get("state") != "running":
            return False
        try:
            return time.time() - (self.path / "status.json").stat().st_mtime < FRESH_SECONDS
        except OSError:
            return False
