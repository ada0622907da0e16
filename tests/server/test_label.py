"""Judging over HTTP: a prompt with answers goes out, a person's word comes in, what can be trained on is downloaded."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from liuli.assistant import Judgements, export
from liuli.assistant.voices import Ended, Event
from liuli.engine import Sampling, Token
from liuli.errors import LiuliError, UsageError
from liuli.files import folder_hash
from liuli.server import judgements, label
from liuli.server.app import create_app
from liuli.server.label_api import PROMPTS_TRIED
from liuli.text import Message, ToolCall
from tests.server.scripted import LiveServer, ScriptedVoice, make_model, make_run

CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "12*7"}'}}


class Labelling:
    """A server that keeps judgements, and short ways to speak with it."""

    def __init__(self, folder: Path, *prompts: str) -> None:
        self.store = folder / "store" / "judgements.sqlite"
        (folder / "prompts.txt").write_text("\n".join(prompts))
        self.model = make_model(folder / "tiny")
        self.voice = ScriptedVoice(self.model)
        options = {"store": self.store, "prompts": folder / "prompts.txt"}
        self.live = LiveServer(self.model, create_app(self.model, load=lambda _: self.voice, **options))

    def __enter__(self) -> Labelling:
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(*error)

    def post(self, path: str, **body: Any) -> Any:
        said = httpx.post(f"{self.live.url}/api/{path}", json=body, timeout=20)
        assert said.status_code == 200, said.text
        return said.json()

    def next(self, answers: int = 2) -> tuple[list[dict[str, Any]], list[int], list[str]]:
        task = self.post("label/next", answers=answers)
        texts = [answer["messages"][-1]["content"] for answer in task["answers"]]
        return task["messages"], [answer["id"] for answer in task["answers"]], texts

    def export(self, kind: str) -> list[dict[str, Any]]:
        said = httpx.get(f"{self.live.url}/api/label/export", params={"kind": kind})
        assert said.headers["content-disposition"] == f'attachment; filename="{kind}.jsonl"'
        return [json.loads(line) for line in said.text.splitlines()]


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Labelling]:
    with Labelling(tmp_path, "How are you?", "你好吗？", "Who is it?") as labelling:
        yield labelling


def test_answers_are_compared_ranked_edited_and_come_out_as_training_data(asked: Labelling) -> None:
    prompt, ids, texts = asked.next()
    assert len(set(texts)) == 2
    drawn = [sampling for _, sampling, _ in asked.voice.asked]
    assert {sampling.temperature for sampling in drawn} == {1.0} and len({sampling.seed for sampling in drawn}) == 2
    counts = asked.post("label/judge", kind="choice", answers=ids[::-1], who="Ada")
    assert counts == {"choice": 1, "ranking": 0, "edit": 0, "thumb": 0, "skipped": 0, "prompts_done": 1, "prompts": 3}
    (row,) = asked.export("dpo")
    assert (row["prompt"], row["who"]) == (prompt, "Ada")
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == (texts[1], texts[0])

    second, ids, texts = asked.next(answers=4)
    assert second != prompt and len(ids) == 4
    asked.post("label/judge", kind="ranking", answers=ids)
    assert len(asked.export("dpo")) == 1 + 6
    for text in ("<b>My</b> own wrods.", "<b>My</b> own words."):  # the second corrects the first
        asked.post("label/judge", kind="edit", answers=ids[:1], text=text)
    assert "wrods" not in str(asked.export("sft") + asked.export("dpo"))
    assert [row["messages"][-1]["content"] for row in asked.export("sft")][-1] == "<b>My</b> own words."
    third, ids, _ = asked.next()
    assert third not in (prompt, second)
    counts = asked.post("label/judge", kind="choice", answers=ids, skipped=True)
    assert (counts["skipped"], counts["prompts_done"], counts["edit"]) == (1, 3, 2)


def test_every_answer_is_kept_with_the_model_that_gave_it(asked: Labelling) -> None:
    asked.next()
    seeds = [sampling.seed for _, sampling, _ in asked.voice.asked]
    with sqlite3.connect(asked.store) as raw:
        rows = raw.execute("SELECT model, model_hash, json_extract(sampling, '$.seed') FROM answers").fetchall()
    assert rows == [("tiny", folder_hash(asked.model), seed) for seed in seeds]


def test_what_was_said_before_a_call_is_kept_once(asked: Labelling, monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(messages: object, sampling: Sampling, *how: object) -> Iterator[Event]:
        yield Token(0, "Let me see. ", -1.0)
        yield Message("assistant", "Let me see. ", (ToolCall("calculator", "{}", "c1"),))
        yield Message("tool", "84", tool_call_id="c1")
        yield Token(1, f"It is {sampling.seed}.", -1.0, stopped_by="end")
        yield Ended("end", 2)

    monkeypatch.setattr(asked.voice, "reply", reply)
    task = asked.post("label/next", answers=2)
    for answer in task["answers"]:
        said, told, last = [message["content"] for message in answer["messages"]]
        assert (said, told) == ("Let me see. ", "84") and last.startswith("It is ")


def test_a_model_that_repeats_itself_is_asked_something_else_then_shown_alone(tmp_path: Path) -> None:
    with Labelling(tmp_path, "which", "long", "markdown", "calculate 1+1") as asked:
        _, ids, _ = asked.next()
        assert (len(ids), len(asked.voice.asked)) == (1, PROMPTS_TRIED * 4)
        counts = asked.post("label/judge", kind="choice", answers=ids, skipped=True)
        assert counts["skipped"] == 1 and asked.export("dpo") == []


def test_thumbs_of_the_chat_go_to_the_same_store(asked: Labelling) -> None:
    tool = [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "84", "tool_call_id": "c1"},
    ]
    question = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "12*7?"}]
    answer = [*tool, {"role": "assistant", "content": "It is 84."}]
    by = {"model": "tiny", "sampling": {"temperature": 0.5, "seed": 3}}
    asked.next()  # the model is in memory, so its hash is known
    asked.post("thumb", messages=question + answer, good=True, who="Ada", **by)
    bad = [*question, {"role": "assistant", "content": "It is 85."}]
    asked.post("thumb", messages=bad, good=False)
    rows = asked.export("kto")
    assert [(row["prompt"], row["completion"], row["label"]) for row in rows] == [
        (question, answer, True),
        (question, bad[-1:], False),
    ]
    with sqlite3.connect(asked.store) as raw:
        (about,) = raw.execute("SELECT model, model_hash, sampling FROM answers WHERE messages LIKE '%84.%'").fetchall()
    assert about == ("tiny", folder_hash(asked.model), '{"temperature": 0.5, "seed": 3}')
    asked.post("thumb", messages=bad, good=None)  # taken back
    assert len(asked.export("kto")) == 1


HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("label/next", {"answers": 5}, 400, "answers"),
        ("label/judge", {"kind": "choice", "answers": [998, 999]}, 400, "not answers to one prompt"),
        ("label/judge", {"kind": "choice", "answers": [2**63, 1]}, 400, "answers.0"),
        ("label/judge", {"kind": "choice", "answers": [-1, 1]}, 400, "answers.0"),
        ("label/judge", {"kind": "thumb", "answers": [1]}, 400, "kind"),
        ("label/judge", {"kind": "choice", "answers": [1, 2], "who": "x" * 81}, 400, "who"),
        ("thumb", {"messages": HI[::-1], "good": True}, 400, "a question and its answer"),
        ("thumb", {"messages": HI, "good": "yes"}, 400, "good"),
        ("thumb", {"messages": HI, "good": True, "html": ""}, 400, "Unknown field"),
        (
            "thumb",
            {"messages": [HI[0], {"role": "assistant", "content": "\ud800"}], "good": True},
            400,
            "half a character",
        ),
        (
            "thumb",
            {"messages": [HI[0], {"role": "assistant", "content": "x" * 1_000_000}], "good": True},
            413,
            "larger",
        ),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    asked: Labelling, path: str, body: dict[str, Any], status: int, said: str
) -> None:
    answer = httpx.post(
        f"{asked.live.url}/api/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status and said in answer.json()["error"]["message"]
    assert not asked.store.exists() or Judgements(asked.store).said() == []


def test_other_sites_pages_cannot_judge(asked: Labelling) -> None:
    for path in ("label/next", "label/judge", "thumb"):
        for headers, status in (({"origin": "https://evil.example"}, 403), ({"content-type": "text/plain"}, 415)):
            every = {"content-type": "application/json", **headers}
            assert httpx.post(f"{asked.live.url}/api/{path}", content="{}", headers=every).status_code == status
    assert httpx.get(f"{asked.live.url}/api/label/export", headers={"host": "evil.example"}).status_code == 400


def test_a_run_keeps_judgements_and_a_model_from_elsewhere_does_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        assert httpx.get(f"{live.url}/api/run").json()["judging"] is True
        early = httpx.post(f"{live.url}/api/label/next", json={})
        assert (early.status_code, early.json()["error"]["code"]) == (503, "still_learning")
        assert not judgements(run).path.exists()
        httpx.post(f"{live.url}/api/thumb", json={"messages": HI, "good": True})
    inside = [
        judgements(place).path for place in (make_model(run / "chat"), make_model(run / "snapshots" / "chat-00000100"))
    ]
    assert inside == [run / "judgements.sqlite"] * 2 and judgements(run).counts()["thumb"] == 1
    alone = make_model(tmp_path / "models" / "tiny")
    with LiveServer(alone) as live:
        assert httpx.get(f"{live.url}/api/run").json()["judging"] is False
        refused = httpx.post(f"{live.url}/api/thumb", json={"messages": HI, "good": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_store")


def test_what_cannot_be_kept_or_asked_is_told_before_anything_is_served(tmp_path: Path) -> None:
    model, served = make_model(tmp_path / "tiny"), list[str]()
    with pytest.raises(UsageError, match="no place") as error:
        label(model, port=0, ready=served.append)
    assert "--store" in str(error.value)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version = 2")
    with pytest.raises(LiuliError, match="newer Liuli"):
        label(model, port=0, store=newer, ready=served.append)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(LiuliError, match="No prompt"):
        label(model, port=0, store=tmp_path / "new.sqlite", prompts=tmp_path / "empty.txt", ready=served.append)
    assert served == []


def test_an_export_of_nothing_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    run = make_model(tmp_path / "run" / "chat").parent
    for kind in ("dpo", "sft", "kto"):
        with pytest.raises(LiuliError, match=f"Nothing was judged that {kind} learns from(?s:.*)liuli label"):
            export(judgements(run / "chat", tmp_path / "store.sqlite"), tmp_path / f"{kind}.jsonl", kind)
        assert not (tmp_path / f"{kind}.jsonl").exists()
