"""The models of a run side by side: each answers by its stage's name, newer ones take over, two at most are loaded."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch

from liuli.files import folder_hash
from liuli.model import Transformer, qwen3, save
from liuli.server import voices
from liuli.server.app import create_app
from liuli.server.runs import models_in
from liuli.server.voices import Keeper
from liuli.text import Tokenizer
from tests.server.scripted import LiveServer, ScriptedVoice, make_model, make_run, set_status

WHICH = [{"role": "user", "content": "which"}]


def aligned_run(path: Path, *models: str) -> Path:
    """A run folder whose build goes on to alignment, with these models in it."""
    run = make_run(path)
    names = ("pretrain", "chat", "reward", "aligned", "dpo")
    set_status(run, stages=[{"name": name, "state": "done", "seconds": 1.0, "share": 0.2} for name in names])
    for model in models:
        make_model(run / model)
    return run


def post(live: LiveServer, **body: object) -> httpx.Response:
    return httpx.post(f"{live.url}/api/chat", json={"messages": WHICH, **body})


def answer(live: LiveServer, **body: object) -> tuple[str, str]:
    """The stage that was told with an answer, and its text: the voice's folder."""
    events = [json.loads(line) for line in post(live, **body).text.splitlines()]
    return events[0]["model"]["stage"], "".join(event.get("text", "") for event in events)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveServer]:
    run = aligned_run(tmp_path / "laptop", "pretrain", "chat", "reward", "aligned")
    (run / "reward" / "config.json").write_text('{"score_offsets": [0.0]}')
    with LiveServer(run) as server:
        yield server


def test_both_models_answer_and_each_is_loaded_once(live: LiveServer) -> None:
    about = httpx.get(f"{live.url}/api/run").json()
    assert [(m["stage"], m["finished"]) for m in about["models"]] == [("aligned", True), ("chat", True)]
    assert about["model"] == about["models"][0]
    for _ in range(2):
        assert answer(live) == ("aligned", "aligned")
        assert answer(live, model="chat") == ("chat", "chat")
        assert answer(live, model="aligned") == ("aligned", "aligned")
    assert len(live.voices) == 2


@pytest.mark.parametrize("name", ["gpt-5", "pretrain", "reward", "../chat"])
def test_a_model_that_cannot_be_talked_to_is_refused(live: LiveServer, name: str) -> None:
    said = post(live, model=name)
    error = said.json()["error"]
    assert (said.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert name in error["message"] and "'aligned', 'chat'" in error["message"] and not live.voices


def test_newer_models_take_over_and_the_one_before_stays_loaded(tmp_path: Path) -> None:
    run = aligned_run(tmp_path / "laptop", "pretrain", "chat")
    with LiveServer(run) as live:
        assert [model["stage"] for model in httpx.get(f"{live.url}/api/run").json()["models"]] == ["chat"]
        assert answer(live, model="chat") == answer(live) == ("chat", "chat")
        for newer in ("snapshots/aligned-00000010", "snapshots/aligned-00000020", "aligned"):
            make_model(run / newer)
            assert answer(live) == answer(live, model="aligned") == ("aligned", Path(newer).name)
            assert answer(live, model="chat") == ("chat", "chat")
        assert [voice.path.name for voice in live.voices].count("chat") == 1 and len(live.voices) == 4


def test_two_voices_are_in_memory_at_most(tmp_path: Path) -> None:
    alive: list[weakref.ref[ScriptedVoice]] = []

    def load(path: Path) -> ScriptedVoice:
        gc.collect()
        assert sum(voice() is not None for voice in alive) <= 1  # room is made before the next one is read
        voice = ScriptedVoice(path)
        alive.append(weakref.ref(voice))
        return voice

    keeper = Keeper(aligned_run(tmp_path / "laptop", "chat", "aligned", "dpo"), load)
    for stage in ("", "aligned", "chat", "dpo", "chat", "aligned"):
        model, voice = keeper.voice(stage) or (None, None)
        assert model and voice and voice.path.name == model.stage == (stage or "dpo")
        del voice
    assert len(alive) == 4  # the newest was never given up
    make_model(keeper.path / "snapshots" / "dpo-00000010")  # older than the finished stage: nothing changes
    assert keeper.voice() and len(alive) == 4
    assert keeper.loaded("dpo") and keeper.loaded("aligned") and not keeper.loaded("chat")


def test_a_run_is_looked_through_again_only_when_something_in_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, looked = aligned_run(tmp_path / "laptop", "chat"), []
    monkeypatch.setattr(voices, "models_in", lambda path: looked.append(path) or models_in(path))

    def settle() -> None:
        for path in (run, *run.rglob("*")):
            os.utime(path, (1e9, 1e9 + len(looked)))

    keeper = Keeper(run, ScriptedVoice)
    settle()
    assert all(keeper.voice("chat") for _ in range(9)) and len(looked) == 1
    make_model(run / "aligned")  # seen at once, and as long as what it says could be of the same moment
    assert [model.stage for model in keeper.models()] == ["aligned", "chat"]
    (run / "aligned" / "tokenizer.json").unlink()
    assert [model.stage for model in keeper.models()] == ["chat"]
    settle()
    assert keeper.models() and (count := len(looked)) and keeper.models() and len(looked) == count
    (run / "aligned" / "tokenizer.json").write_text("{}")
    assert [model.stage for model in keeper.models()] == ["aligned", "chat"]


def test_models_are_loaded_and_used_in_one_thread(tmp_path: Path) -> None:
    threads = set()

    class Watched(ScriptedVoice):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            threads.add(threading.get_ident())

        def prompt_tokens(self, messages: object) -> int:
            threads.add(threading.get_ident())
            return 1

    run = aligned_run(tmp_path / "laptop", "chat", "aligned")
    with LiveServer(run, create_app(run, load=Watched)) as live:
        assert answer(live)[1] == "aligned" and answer(live, model="chat")[1] == "chat"
    assert len(threads) == 1


def test_two_real_models_that_take_turns_say_what_each_says_alone(tmp_path: Path) -> None:
    run = aligned_run(tmp_path / "laptop")
    tokenizer = Tokenizer.train(["hello world, how are you? 你好，世界！" * 20], 300)
    tokenizer.save(tmp_path / "tokenizer")
    for seed, stage in enumerate(("chat", "aligned")):
        torch.manual_seed(seed)
        model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=64))
        save(model, run / stage, tokenizer_folder=tmp_path / "tokenizer", provenance={"stage": stage})
    with LiveServer(run, create_app(run)) as live, ThreadPoolExecutor(2) as both:

        def said(stage: str) -> str:
            lines = post(live, model=stage, seed=3, temperature=1.0, max_tokens=40).text.splitlines()
            return "\n".join(lines[1:-1])  # the last one tells the time it took

        alone = [said(stage) for stage in ("chat", "aligned")]
        assert alone[0] != alone[1] and all(len(each.splitlines()) > 3 for each in alone)
        assert list(both.map(said, ("chat", "aligned"))) == alone


def test_a_damaged_second_model_does_not_touch_the_first(tmp_path: Path) -> None:
    def load(path: Path) -> ScriptedVoice:
        if path.name == "chat":
            raise OSError("the disk is broken")
        return ScriptedVoice(path)

    run = aligned_run(tmp_path / "laptop", "chat", "aligned")
    with LiveServer(run, create_app(run, load=load)) as live:
        assert post(live, model="chat").status_code == 404
        assert answer(live) == ("aligned", "aligned")
        assert [model["stage"] for model in httpx.get(f"{live.url}/api/run").json()["models"]] == ["aligned"]


def test_openai_clients_find_every_stage_by_its_id(live: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["laptop", "laptop/aligned", "laptop/chat"]
        assert client.models.retrieve("laptop/chat").id == "laptop/chat"
        for id, stage in (("laptop", "aligned"), ("laptop/aligned", "aligned"), ("laptop/chat", "chat")):
            done = client.chat.completions.create(model=id, messages=WHICH)
            assert (done.model, done.choices[0].message.content) == (id, stage)
        with pytest.raises(openai.NotFoundError, match="'laptop', 'laptop/aligned', 'laptop/chat'"):
            client.chat.completions.create(model="chat", messages=WHICH)


def test_which_of_two_answers_is_better_goes_to_the_judgements(live: LiveServer) -> None:
    run = live.server.config.app.state.desk.keeper.path
    assert (answer(live)[1], answer(live, model="chat")[1]) == ("aligned", "chat")
    given = [
        {"messages": [{"role": "assistant", "content": name}], "model": name, "sampling": {"seed": 3}}
        for name in ("chat", "aligned")
    ]
    said = httpx.post(f"{live.url}/api/prefer", json={"messages": WHICH, "answers": given, "who": "Ada"})
    assert said.status_code == 200, said.text
    (row,) = [json.loads(line) for line in httpx.get(f"{live.url}/api/label/export").text.splitlines()]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"], row["who"]) == ("chat", "aligned", "Ada")
    assert row["prompt"] == WHICH
    with sqlite3.connect(run / "judgements.sqlite") as raw:
        kept = raw.execute("SELECT model, model_hash FROM answers").fetchall()
    assert kept == [(name, folder_hash(run / name)) for name in ("chat", "aligned")]

    two_questions = [{**given[0], "messages": [*WHICH, *given[0]["messages"]]}, given[1]]
    for wrong in (given[:1], [given[0], {"messages": WHICH}], two_questions):
        body = {"messages": [{"role": "user", "content": "first"}], "answers": wrong}
        assert httpx.post(f"{live.url}/api/prefer", json=body).status_code == 400
