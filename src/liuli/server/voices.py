"""The models that answer now: loaded from their folders, replaced when a run makes newer ones.

In: a model folder or a run folder. Out: a `Voice` (assistant/voices.py). HTTP knows only voices, so tests speak with a
scripted one.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from liuli.assistant.voices import ModelVoice, Voice
from liuli.errors import LiuliError, UsageError
from liuli.folder import context_in
from liuli.model.adapters import adapters_of
from liuli.server.errors import ApiError
from liuli.server.runs import ModelFile, check_servable, folders_in, is_model_folder, models_in, read_json

LOG = logging.getLogger("liuli.server")
SETTLED_SECONDS = 1.0  # a file's time is only so exact: what has just changed may change again unseen
FRESH_SECONDS = 90.0  # a run whose status.json is older than this is not training any more
BEFORE_CHAT = "pretrain"  # the stage whose model goes on with any text: it talks while there is no better one


class Keeper:
    """Knows the models of PATH, of `more` folders and their adapters, and keeps at most so many of them in memory.

    `voice`, `lent` and `forget` are for the worker's thread only.
    """

    def __init__(
        self,
        path: Path,
        load: Callable[[Path], Voice] = ModelVoice,
        elsewhere: str = "",
        more: Sequence[Path] = (),
        at_most: int = 2,
    ) -> None:
        check_servable(path)
        self._elsewhere = ModelFile(Path(elsewhere), "remote", 0, True, 0.0) if elsewhere else None
        self.path = path
        self.run = None if is_model_folder(path) else path
        self.name = path.resolve().name
        self._load = load
        self.at_most = at_most
        self._more = folders_by_name(self.name, more)
        # by when they were used, the longest ago first; never changed, only replaced: other threads read it
        self._loaded: dict[ModelFile, Voice] = {}
        self._lent: list[ModelFile] = []  # one for each answer that is being written
        self._broken: set[tuple[Path, float]] = set()
        self._found: tuple[tuple[float, ...], list[ModelFile]] = ((), [])  # here, and when it had changed last

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

    def ids(self) -> dict[str, ModelFile]:
        """Every model by its id, the default one first: NAME, in a run NAME/STAGE, other folders', and ID:ADAPTER."""
        newest = self.newest()
        found = {self.name: newest} if newest else {}
        if self.run:
            found |= {f"{self.name}/{model.stage}": model for model in self.models()}
        found |= {name: model_file(path) for name, path in self._more.items() if is_model_folder(path)}  # not removed
        for id, model in list(found.items()):
            found |= {f"{id}:{name}": replace(model, path=path) for name, path in adapters_of(model.path).items()}
        return found

    def voice(self, stage: str = "") -> tuple[ModelFile, Voice] | None:
        """The newest model, or that of a stage or an id, loaded if it was not; None where there is no such model.

        In a run, a model that cannot be read (just pruned, or damaged) is passed over for the next best one. Raises
        ApiError 503 where there is no room for another model because all those in memory are writing.
        """
        while (wanted := self._best(stage)) is not None:
            if wanted in self._loaded:
                voice = self._loaded[wanted]
                self._loaded = {**{model: v for model, v in self._loaded.items() if model != wanted}, wanted: voice}
                return wanted, voice
            try:
                self._make_room()
                self._loaded = {**self._loaded, wanted: self._load(wanted.path)}
            except (LiuliError, OSError) as error:
                if self.run is None or self._elsewhere or wanted not in self._all():
                    raise
                if wanted.path.exists():
                    LOG.warning("%s is passed over: %s", wanted.path, error)
                self._broken.add((wanted.path, wanted.made))
        return None

    def _make_room(self) -> None:
        newest = self.newest()  # goes last: it is the one that is asked for without a name
        idle = sorted((model for model in self._loaded if model not in self._lent), key=lambda model: model == newest)
        if len(self._loaded) < self.at_most:
            return
        if not idle:
            message = f"The {self.at_most} models in memory are all writing answers; try again in a moment."
            raise ApiError(503, message, code="model_busy")
        self._loaded = {model: voice for model, voice in self._loaded.items() if model != idle[0]}
        gc.collect()  # an engine and its parts know each other

    @contextmanager
    def lent(self, model: ModelFile) -> Iterator[None]:
        """While a model is writing it stays in memory."""
        self._lent.append(model)
        try:
            yield
        finally:
            with suppress(ValueError):  # it was forgotten; an answer that blocks ends in a thread of its own
                self._lent.remove(model)

    def forget(self) -> None:
        """Unload everything: who knows in which state a dead thread left it."""
        self._loaded = {}
        self._lent.clear()

    def reused(self) -> int:
        """How many tokens of prompts the models in memory did not have to compute anew."""
        return sum(voice.engine.stats.reused for voice in self._loaded.values() if isinstance(voice, ModelVoice))

    def loaded(self, name: str) -> ModelFile | None:
        """The model in memory whose folder has this name."""
        return next((model for model in self._loaded if model.path.name == name), None)

    def _all(self) -> list[ModelFile]:
        if self._elsewhere:
            return [self._elsewhere]
        return [model for model in self._here() if (model.path, model.made) not in self._broken]

    def _here(self) -> list[ModelFile]:
        """The models of the folder or run; files are read only where something has changed, for every answer asks."""
        if self.run:
            places = [self.run / "status.json", self.run, *folders_in(self.run)]
        else:
            places = [self.path / "liuli.json", self.path / "config.json"]
        times = tuple(map(changed_at, places))
        if times != self._found[0] or time.time() - max(times) < SETTLED_SECONDS:
            self._found = times, models_in(self.run) if self.run else [model_file(self.path)]
        return self._found[1]

    def _best(self, wanted: str) -> ModelFile | None:
        if not wanted:
            return self.newest()
        return self.ids().get(wanted) or next((model for model in self.models() if model.stage == wanted), None)

    def is_training(self) -> bool:
        """Whether a build is writing this run folder right now."""
        status = read_json(self.run / "status.json") if self.run else None
        if not status or status.get("state") != "running":
            return False
        try:
            return time.time() - (self.path / "status.json").stat().st_mtime < FRESH_SECONDS
        except OSError:
            return False


def changed_at(path: Path) -> float:
    """When a file or a folder changed last, in seconds; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def model_file(path: Path) -> ModelFile:
    """A model folder that lies in no run, or is served as if it did not."""
    about, config = (read_json(path / name) or {} for name in ("liuli.json", "config.json"))
    made, context = (path / "config.json").stat().st_mtime, context_in(config)
    return ModelFile(path, str(about.get("stage", "")), int(about.get("step") or 0), True, made, context)


def folders_by_name(first: str, more: Sequence[Path]) -> dict[str, Path]:
    """Model folders by the names they are served under. Raises UsageError for two of one name, and for a run."""
    found: dict[str, Path] = {}
    for path in more:
        check_servable(path)
        name = path.resolve().name
        if not is_model_folder(path):
            raise UsageError(
                "Only the first folder may be a run.", path, f"name one of its models, such as {path}/chat"
            )
        if name in found or name == first:
            raise UsageError(f"Two models would be called {name!r}.", path, "rename one of the folders")
        found[name] = path
    return found
