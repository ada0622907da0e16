"""What people said is kept whole, by any number of processes, and comes out as what can be trained on."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from liuli.assistant import Candidate, Exported, Judgement, Judgements, Prompts, export, read_prompts
from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import read_lines
from liuli.text import Message, read_conversations
from liuli.text.preferences import read_judged, read_preferences

ASKED = (Message("user", "What is 2 + 2? 二加二？"),)


def said(text: str) -> Candidate:
    return Candidate((Message("assistant", text),), "chat", "abc", {"temperature": 1.0, "seed": 7})


@pytest.fixture
def store(tmp_path: Path) -> Judgements:
    return Judgements(tmp_path / "run" / "judgements.sqlite")


def shown(store: Judgements, *texts: str, prompt: tuple[Message, ...] = ASKED) -> tuple[int, ...]:
    return tuple(store.show(prompt, [said(text) for text in texts]))


def rows(store: Judgements, kind: str, tmp_path: Path) -> tuple[list[dict], Exported]:
    exported = export(store, tmp_path / f"{kind}.jsonl", kind)
    return read_lines(tmp_path / f"{kind}.jsonl"), exported


def test_what_was_judged_comes_back_from_the_file(store: Judgements) -> None:
    assert store.counts()["choice"] == 0 and not store.path.exists()  # looking makes no file
    four, five = shown(store, "It is 4.", "It is 5.")
    assert shown(store, "It is 4.")[0] > five  # shown again: the same prompt, another answer
    store.judge(Judgement("choice", (four, five), who=" Ada "))
    store.judge(Judgement("choice", (five, four), who="Bob", skipped=True))
    store.judge(Judgement("edit", (five,), edited="It is 4, not 5."))
    again = Judgements(store.path)
    first, edit = again.said()
    assert (first.kind, first.who) == ("choice", "Ada")
    assert json.loads(first.prompt) == [{"role": "user", "content": ASKED[0].content}]
    assert [json.loads(text)[0]["content"] for text in edit.answers] == ["It is 4, not 5.", "It is 5."]
    assert again.counts() == {"choice": 1, "ranking": 0, "edit": 1, "thumb": 0, "skipped": 1}
    assert list(again.times_judged().values()) == [3]
    with sqlite3.connect(store.path) as raw:
        made = "SELECT model, model_hash, json_extract(sampling, '$.seed') FROM answers"
        assert raw.execute(made).fetchall() == [("chat", "abc", 7)] * 3 + [("", "", None)]
        assert raw.execute("SELECT COUNT(*) FROM prompts").fetchone() == (1,)


def test_a_ranking_gives_all_its_pairs_in_one_group(store: Judgements, tmp_path: Path) -> None:
    ids = shown(store, "d", "b", "a", "c")
    store.judge(Judgement("ranking", (ids[2], ids[1], ids[3], ids[0]), who="Ada"))
    other = shown(store, "x", "y", prompt=(Message("system", "Be kind."), Message("user", "Hi")))
    store.judge(Judgement("choice", other))
    written, exported = rows(store, "dpo", tmp_path)
    pairs = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in written]
    assert pairs == [*combinations("abcd", 2), ("x", "y")]
    assert len({row["group"] for row in written[:6]}) == 1 and written[6]["group"] != written[0]["group"]
    assert {row["who"] for row in written[:6]} == {"Ada"} and exported == Exported(rows=7)


def test_a_pair_judged_both_ways_is_reported_and_left_out(store: Judgements, tmp_path: Path) -> None:
    a, b, c = shown(store, "a", "b", "c")
    store.judge(Judgement("ranking", (a, b, c), who="Ada"))
    store.judge(Judgement("choice", (b, a), who="Bob"))
    store.judge(Judgement("choice", (b, c), who="Bob"))  # agrees with Ada
    written, exported = rows(store, "dpo", tmp_path)
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in written] == [("a", "c"), ("b", "c")]
    assert exported == Exported(rows=2, duplicates=1, contradictions=1)
    with pytest.raises(LiuliError, match=r"sft learns from \(1 judged one way"):
        rows(store, "sft", tmp_path)  # each was best for one, worse for another


def test_good_answers_are_the_best_and_the_edited_ones_but_not_what_was_edited(
    store: Judgements, tmp_path: Path
) -> None:
    a, b = shown(store, "a", "b")
    call = Message.from_dict(
        {"role": "assistant", "tool_calls": [{"function": {"name": "calculator", "arguments": "{}"}}]}
    )
    steps = (call, Message("tool", "4"), Message("assistant", "It is 5."))
    (wrong,) = store.show(ASKED, [Candidate(steps)])
    for best in ((a, b), (a, b), (wrong, b)):
        store.judge(Judgement("choice", best))
    store.judge(Judgement("edit", (wrong,), edited="It is 4."))
    written, exported = rows(store, "sft", tmp_path)
    assert [row["messages"][-1]["content"] for row in written] == ["a", "It is 4."]
    assert [message["role"] for message in written[1]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert exported.duplicates == 1
    (silent,) = shown(store, " ")
    store.judge(Judgement("edit", (silent,), edited="Four."))  # no pair, but a good answer
    assert rows(store, "sft", tmp_path)[0][-1]["messages"][-1]["content"] == "Four."
    edited = rows(store, "dpo", tmp_path)[0][-1]
    assert (edited["chosen"][-1]["content"], edited["rejected"][-1]["content"]) == ("It is 4.", "It is 5.")


def test_of_one_persons_thumbs_the_last_counts_and_a_quarrel_is_left_out(store: Judgements, tmp_path: Path) -> None:
    def thumb(text: str, who: str, good: bool | None) -> None:
        store.judge(Judgement("thumb", shown(store, text), who, good, skipped=good is None))

    for text, who, good in (
        *(("changed", "Ada", True), ("changed", "Ada", False)),
        *(("taken back", "Ada", True), ("taken back", "Ada", None)),
        *(("quarrel", "Ada", True), ("quarrel", "Bob", False)),
        *(("liked", "Ada", True), ("liked", "Bob", True)),
        ("", "Ada", False),
    ):
        thumb(text, who, good)
    written, exported = rows(store, "kto", tmp_path)
    assert [(row["completion"][0]["content"], row["label"]) for row in written] == [("changed", False), ("liked", True)]
    assert exported == Exported(rows=2, duplicates=2, contradictions=1, empty=1)


def test_what_is_exported_can_be_read_again(store: Judgements, tmp_path: Path) -> None:
    a, b, empty = shown(store, "ä 好 <b>\u2028", "two\nlines", " ")
    store.judge(Judgement("ranking", (a, b, empty), who="Ada"))
    store.judge(Judgement("thumb", (a,), good=True))
    store.judge(Judgement("thumb", (b,), good=False))
    assert rows(store, "dpo", tmp_path)[1].empty == 2  # a model that said nothing is no example of anything
    (pair,) = read_preferences(tmp_path / "dpo.jsonl")
    assert (pair.prompt, pair.chosen[0].content, pair.rejected[0].content) == (ASKED, "ä 好 <b>\u2028", "two\nlines")
    assert pair.who == "Ada" and pair.group == rows(store, "dpo", tmp_path)[0][0]["group"]
    rows(store, "sft", tmp_path), rows(store, "kto", tmp_path)
    (good,) = read_conversations(tmp_path / "sft.jsonl")
    assert good.messages == (*ASKED, *pair.chosen)
    assert [judged.good for judged in read_judged(tmp_path / "kto.jsonl")] == [True, False]
    with pytest.raises(UsageError, match="no export 'ppo'"):
        export(store, tmp_path / "out", "ppo")


WRITER = """
import sys
from liuli.assistant import Candidate, Judgement, Judgements
from liuli.text import Message
store = Judgements(sys.argv[1])
for n in range(40):
    prompt = (Message("user", f"question {n % 7}"),)
    ids = store.show(prompt, [Candidate((Message("assistant", f"{sys.argv[2]} {n} {i}"),)) for i in range(2)])
    store.judge(Judgement("choice", tuple(ids), who=sys.argv[2]))
"""


def test_processes_that_write_at_once_lose_nothing(store: Judgements, tmp_path: Path) -> None:
    start = [sys.executable, "-c", WRITER, str(store.path)]
    writers = [subprocess.Popen([*start, who], stderr=subprocess.PIPE, text=True) for who in ("Ada", "Bob")]
    assert [writer.communicate(timeout=100)[1] for writer in writers] == ["", ""]
    assert store.counts()["choice"] == 80 and len(store.times_judged()) == 7
    written, exported = rows(store, "dpo", tmp_path)
    assert len(written) == 80 and exported.contradictions == 0
    assert {row["who"] for row in written} == {"Ada", "Bob"}


def test_a_newer_store_or_another_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    newer, other, torn = (tmp_path / name for name in ("newer.sqlite", "other.sqlite", "torn.sqlite"))
    with sqlite3.connect(newer) as raw:
        raw.execute("PRAGMA user_version = 2")
    with sqlite3.connect(other) as raw:
        raw.execute("CREATE TABLE recipes (id INTEGER)")
    torn.write_bytes(b"not a database, but long enough to be looked at" * 40)
    before = [path.read_bytes() for path in (newer, other, torn)]
    for path, error, what in (
        (newer, LiuliError, "newer Liuli"),
        (other, UsageError, "the table recipes"),
        (torn, DamagedError, "not a database"),
    ):
        with pytest.raises(error, match=what) as raised:
            Judgements(path).counts()
        assert str(path) in str(raised.value)
    assert [path.read_bytes() for path in (newer, other, torn)] == before
    (tmp_path / "file").write_text("")
    with pytest.raises(LiuliError, match="cannot be read or written"):
        shown(Judgements(tmp_path / "file" / "judgements.sqlite"), "a")


@pytest.mark.parametrize(
    "wrong",
    [
        Judgement("choice", (1, 1)),
        Judgement("choice", (1,)),
        Judgement("choice", (1, 2, 3)),
        Judgement("choice", (1, 4)),  # answers to two prompts
        Judgement("ranking", (1, 99)),
        Judgement("edit", (1,), edited="a"),  # nothing was changed
        Judgement("edit", (1,), edited=" "),
        Judgement("thumb", (1,)),
        Judgement("choice", (1, 2), who="\ud800"),
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused(store: Judgements, wrong: Judgement) -> None:
    shown(store, "a", "b", "c")
    shown(store, "d", prompt=(Message("user", "another"),))
    with pytest.raises(UsageError):
        store.judge(wrong)
    assert store.said() == []


def test_prompts_come_from_a_file_a_classroom_or_are_built_in(tmp_path: Path) -> None:
    lines = tmp_path / "questions.txt"
    lines.write_text("How are you?\n\n  你好吗？ \nHow are you?\n")
    assert [prompt[-1].content for prompt in read_prompts(lines, None)] == ["How are you?", "你好吗？"]
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"instruction": "Add", "input": "2 3", "output": "5", "history": [["Hi", "Hello"]]}\n')
    assert [m.content for m in read_prompts(talks, None)[0]] == ["Hi", "Hello", "Add\n2 3"]
    exam = tmp_path / "curriculum" / "eval.jsonl"
    exam.parent.mkdir()
    items = [
        {"id": f"sum.en.{split}.0", "messages": [{"role": "user", "content": split}]} for split in ("train", "names")
    ]
    exam.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert [prompt[-1].content for prompt in read_prompts(None, tmp_path)] == ["train"]  # an exam is not for practice
    built_in = "".join(prompt[-1].content for prompt in read_prompts(None, tmp_path / "nowhere"))
    assert "Hello" in built_in and "你好" in built_in
    lines.write_text("\n")
    with pytest.raises(LiuliError, match="No prompt"):
        read_prompts(lines, None)


def test_prompts_judged_least_often_are_dealt_first(store: Judgements) -> None:
    asked = [(Message("user", str(n)),) for n in range(5)]
    dealer = Prompts(asked)
    first = [dealer.next({})[0].content for _ in range(5)]
    assert sorted(first) == ["0", "1", "2", "3", "4"] and first != sorted(first)
    store.judge(Judgement("choice", shown(store, "a", "b", prompt=asked[3])))
    judged = store.times_judged()
    assert (dealer.done(judged), len(dealer)) == (1, 5)
    assert "3" not in [Prompts(asked).next(judged)[0].content for _ in range(4)]


def test_the_room_needs_no_torch() -> None:
    code = "import sys, liuli.assistant; print(*[name for name in ('torch', 'fastapi') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == []
