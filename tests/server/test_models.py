"""Several models in one server: by their names, in memory only when asked for, and never more than were allowed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from liuli.errors import UsageError
from liuli.server.app import create_app
from tests.server.scripted import LiveServer, ScriptedVoice, make_model, make_run, until

HTTP = httpx.Client()


class Many:
    """A server of some folders; `alive` are the voices in memory by their folders' names."""

    def __init__(self, *paths: Path, loaded: int = 2, pause: float = 0.0) -> None:
        self.loads: list[str] = []
        self._voices: list[weakref.ref[ScriptedVoice]] = []

        def load(path: Path) -> ScriptedVoice:
            self.loads.append(path.name)
            voice = ScriptedVoice(path, pause=pause)
            self._voices.append(weakref.ref(voice))
            return voice

        app = create_app(paths[0], load=load, more=paths[1:], loaded=loaded)
        self.live = LiveServer(paths[0], app)

    @property
    def alive(self) -> list[str]:
        gc.collect()
        return sorted(found.path.name for voice in self._voices if (found := voice()) is not None)

    def ask(self, model: str, text: str = "which", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return HTTP.post(f"{self.live.url}/v1/chat/completions", json=body, timeout=60)

    def says(self, model: str) -> str:
        said = self.ask(model)
        assert said.status_code == 200, said.text
        assert said.json()["model"] in (model, "tiny")
        return str(said.json()["choices"][0]["message"]["content"])


def add_adapter(model: Path, name: str) -> None:
    (model / "adapters" / name).mkdir(parents=True)
    (model / "adapters" / name / "adapter_config.json").write_text("{}")


def test_each_model_and_adapter_answers_by_its_name_and_the_first_by_none(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "tiny"), make_model(tmp_path / "other")
    add_adapter(first, "poet")
    many = Many(first, second, loaded=3)
    with many.live:
        client = openai.OpenAI(base_url=f"{many.live.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny", "other", "tiny:poet"]
        assert [many.says(id) for id in ("", "tiny", "other", "tiny:poet")] == ["tiny", "tiny", "other", "poet"]
        assert client.models.retrieve("tiny:poet").id == "tiny:poet"
        unknown = many.ask("tiny:prose")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert "'tiny:poet'" in unknown.json()["error"]["message"]
        add_adapter(second, "poet")  # it is there from now on
        assert many.says("other:poet") == "poet"


def test_the_one_used_longest_ago_is_unloaded_and_loaded_again_when_asked_for(tmp_path: Path) -> None:
    folders = [make_model(tmp_path / name) for name in ("main", "a", "b", "c")]
    many = Many(*folders, loaded=3)
    with many.live:
        assert many.loads == []  # nothing before the first question
        for name in ("main", "a", "b", "a", "c"):
            assert many.ask(name).json()["choices"][0]["message"]["content"] == name
        assert many.alive == ["a", "c", "main"] and many.loads == ["main", "a", "b", "c"]
        many.ask("b")
        assert many.alive == ["b", "c", "main"]  # the first is the last to go
        assert many.loads == ["main", "a", "b", "c", "b"]


def test_a_model_that_is_writing_stays_and_one_too_many_has_to_wait(tmp_path: Path) -> None:
    folders = [make_model(tmp_path / name) for name in ("a", "b")]
    many = Many(*folders, loaded=1, pause=0.002)
    with many.live, ThreadPoolExecutor() as pool:
        long = pool.submit(many.ask, "a", "long", max_tokens=300)
        until(lambda: many.loads == ["a"])
        refused = many.ask("b")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_busy")
        assert "retry-after" in refused.headers
        assert many.ask("a").status_code == 200
        assert len(long.result().json()["choices"][0]["message"]["content"]) > 1000
        assert many.ask("b").status_code == 200 and many.alive == ["b"]


def test_a_run_and_a_model_are_served_together(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "laptop"), make_model(tmp_path / "other")
    add_adapter(make_model(run / "chat"), "poet")
    many = Many(run, other)
    with many.live:
        ids = [model["id"] for model in httpx.get(f"{many.live.url}/v1/models").json()["data"]]
        assert ids == ["laptop", "laptop/chat", "other", "laptop:poet", "laptop/chat:poet"]
        said = [many.ask(id).json()["choices"][0]["message"]["content"] for id in ids]
        assert said == ["chat", "chat", "other", "poet", "poet"]
        asked = {"messages": [{"role": "user", "content": "which"}], "model": "chat"}  # the page asks by stage
        lines = httpx.post(f"{many.live.url}/api/chat", json=asked).text.splitlines()
        assert json.loads(lines[0])["model"]["name"] == "chat"


def test_a_folder_that_is_named_like_a_stage_is_asked_for_by_its_name(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "tiny"), make_model(tmp_path / "other" / "chat")
    (first / "liuli.json").write_text('{"stage": "chat"}')
    many = Many(first, second)
    with many.live:
        assert [many.says(id) for id in ("chat", "tiny")] == ["chat", "tiny"]


def test_a_folder_that_is_removed_is_a_model_less(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "tiny"), make_model(tmp_path / "other")
    many = Many(first, second)
    with many.live:
        shutil.rmtree(second)
        listed = HTTP.get(f"{many.live.url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["tiny"] and many.says("tiny") == "tiny"
        assert many.ask("other").status_code == 404


def test_folders_that_cannot_be_told_apart_or_served_are_refused(tmp_path: Path) -> None:
    first, same, run = make_model(tmp_path / "x"), make_model(tmp_path / "y" / "x"), make_run(tmp_path / "run")
    for more, what in (([same], "two models|Two models"), ([run], "Only the first"), ([tmp_path / "no"], "no such")):
        with pytest.raises(UsageError, match=what):
            create_app(first, more=more)
