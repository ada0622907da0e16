"""What a build leaves behind: text that nothing was trained on, and a report however it ended."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from liuli.build import TITLES, Build, build
from liuli.curriculum import make
from liuli.errors import LiuliError, UsageError
from liuli.evals import read_held_out
from liuli.material import place_of
from liuli.recipe import Recipe, recipe_toml
from liuli.text import Rows, Tokenizer
from tests.evals.conftest import make_run

RECIPE = Recipe(name="small", context=64)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose build was killed after the examination: every stage is there, it says it runs, there is no report."""
    folder = make_run(tmp_path / "small")
    (folder / "recipe.toml").write_text(recipe_toml(RECIPE), "utf-8")
    for name in TITLES:
        (folder / name).mkdir(exist_ok=True)
    status = json.loads((folder / "status.json").read_text("utf-8"))
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}), "utf-8")
    return folder


def state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text("utf-8"))["state"])


def test_a_build_killed_before_its_report_writes_it_at_the_next_start_and_is_done(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    (run / "plan.json").write_text(json.dumps(plan | {"seconds": {"pretrain": 119.5}}), "utf-8")
    code = "import os, sys, liuli.build, liuli.recipe, liuli.evals\n"
    code += "liuli.evals.write_report = lambda folder: os.kill(os.getpid(), 9)\n"
    code += "liuli.build.build(liuli.recipe.Recipe(name='small', context=64), sys.argv[1], quiet=True)"
    killed = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert state(run) == "running" and not (run / "report.html").exists()
    build(RECIPE, run, quiet=True)
    assert state(run) == "done" and "3.05M" in (run / "report.html").read_text("utf-8")
    stages = json.loads((run / "status.json").read_text("utf-8"))["stages"]
    assert {stage["seconds"] for stage in stages if stage["name"] == "pretrain"} == {119.5}  # as it took then


def test_a_build_that_is_whole_is_left_as_it_is(run: Path) -> None:
    build(RECIPE, run, quiet=True)
    names = ("report.html", "status.json", "log.jsonl", "eval.json")
    before = [(run / name).stat().st_mtime_ns for name in names]
    build(RECIPE, run, quiet=True)
    assert [(run / name).stat().st_mtime_ns for name in names] == before


def test_a_folder_begun_with_another_recipe_is_left_alone_and_what_differs_is_said(run: Path) -> None:
    with pytest.raises(UsageError, match=re.escape("another recipe: - context = 64, + context = 128")):
        build(replace(RECIPE, context=128), run, quiet=True)
    assert (run / "recipe.toml").read_text("utf-8") == recipe_toml(RECIPE)


@pytest.mark.parametrize(("size", "share"), [(1_000_000, 0.1), (8_000_000, 0.03)])
def test_some_lessons_of_each_language_are_held_out_of_all_training(tmp_path: Path, size: int, share: float) -> None:
    made = Build(replace(RECIPE, context=512), tmp_path, quiet=True)
    make(tmp_path / "curriculum", seed=0, size=size)
    made.keep(vocab_size=300, tokens=1e6)
    Tokenizer.train(["the stories", "故事"], 300).save(tmp_path / "tokenizer")
    made.rows()
    held = {document.text: document for document in read_held_out(tmp_path / "rows" / "held_out.jsonl")}
    written = [line["text"] for line in made.material.lessons("text")]
    assert {document.language for document in held.values()} == {"en", "zh"}
    assert 0.5 * share < sum(text in held for text in written) / len(written) < 2 * share
    read = {document.text for document in made.material.texts(chats=True)}
    assert not read & set(held) and set(written) == {text for text in written if text in read or text in held}
    tokenizer, rows = Tokenizer.load(tmp_path / "tokenizer"), Rows.open(tmp_path / "rows" / "pretrain")
    trained = {text for row in rows.tokens for text in tokenizer.decode(row.tolist()).split("<|bos|>")}
    assert not trained & set(held) and len(trained & read) > 0.3 * len(set(written))


def test_a_build_that_dies_while_it_writes_its_tokenizer_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Build(Recipe(name="small", layers=1, width=64, vocab=300), tmp_path, quiet=True)
    made.keep(layers=1, vocab_size=300, tokens=1e5)
    make(tmp_path / "curriculum", seed=0, size=100_000)
    save = Tokenizer.save

    def dies(self: Tokenizer, folder: Path) -> None:
        save(self, folder)
        raise MemoryError("killed")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Tokenizer, "save", dies)
        made.tokenizer()
    assert not (tmp_path / "tokenizer").exists()
    made.tokenizer()
    assert Tokenizer.load(tmp_path / "tokenizer").vocab_size == 300


@pytest.mark.parametrize(
    ("count", "times"), [(3, 50), (200, None), (6000, None)], ids=["few", "some", "more than there is time for"]
)
def test_own_conversations_stand_among_the_lessons_as_often_as_asked(
    tmp_path: Path, count: int, times: int | None
) -> None:
    asked = [{"question": f"Where is shelf {n}?", "answer": f"Shelf {n} stands in hall {n % 7}."} for n in range(count)]
    asked.append({"question": "Tell me all.", "answer": "It is long. " * 400})
    asked.append({"history": [["Tell me.", "It is long. " * 400]], "question": "And then?", "answer": "No more."})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    recipe = Recipe(name="small", context=1024, chats=(str(tmp_path / "own.jsonl"),), chats_share=0.2)
    made = Build(recipe, tmp_path, quiet=True)
    make(tmp_path / "curriculum", seed=0, size=600_000)
    made.keep(vocab_size=300, tokens=1e5)
    assert any("Shelf 2 stands" in document.text for document in made.material.texts(chats=True))
    Tokenizer.train(["Where is a shelf in the halls?"], 300).save(tmp_path / "tokenizer")
    made.rows()
    tokenizer, rows = Tokenizer.load(tmp_path / "tokenizer"), Rows.open(tmp_path / "rows" / "chat")
    padded = [chat for row in rows.tokens for chat in tokenizer.decode(row.tolist()).split("<|bos|>")[1:]]
    chats = [chat.replace("<|pad|>", "") for chat in padded]
    own = [int(found[1]) for chat in chats if (found := re.search(r"Shelf (\d+) stands", chat))]
    often = [own.count(n) for n in range(0, count, max(1, count // 100))]
    if times:
        assert often == [times] * count
    else:
        tokens = [len(tokenizer.encode(chat)) for chat in chats]
        share = sum(n for n, chat in zip(tokens, chats, strict=True) if "Shelf" in chat) / sum(tokens)
        assert share == pytest.approx(0.2, abs=0.03) and max(often) - min(often) <= 1
    told = (tmp_path / "log.jsonl").read_text()
    assert "1 conversations have no answer that fits 1024 tokens and are left out" in told  # in the words of liuli sft
    assert "1 conversations are longer than 1024 tokens and lose their first turns" in told


def test_own_conversations_that_cannot_be_read_end_a_build_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n{"question": "When?"}\n')
    with pytest.raises(LiuliError, match=r"own\.jsonl.*2"):
        build(Recipe(name="small", chats=(str(tmp_path / "own.jsonl"),)), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "curriculum").exists()


def test_a_run_begun_before_recipes_had_a_field_goes_on(run: Path) -> None:
    lines = recipe_toml(RECIPE).splitlines()
    (run / "recipe.toml").write_text("\n".join(line for line in lines if not line.startswith("chats")), "utf-8")
    build(RECIPE, run, quiet=True)
    assert state(run) == "done"


def test_the_folders_of_a_users_text_are_walked_once_to_know_how_much_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.txt").write_text("This is a line of a text of my own.\n" * 9)
    walked: list[object] = []
    monkeypatch.setattr("liuli.material.source_bytes", lambda sources: walked.append(sources) or 333)
    made = Build(Recipe(name="small", text=(str(tmp_path / "own.txt"),)), tmp_path / "run", quiet=True)
    make(tmp_path / "run" / "curriculum", seed=0, size=100_000)
    made.keep(tokens=1e6)
    for _ in range(2):  # for the tokenizer and for the rows
        list(made.material.texts())
    made.material.held_out_texts()
    assert walked == [(str(tmp_path / "own.txt"),)]


@pytest.mark.parametrize(("files", "characters"), [(1, 3_000_000), (30, 1_000)], ids=["a book", "notes"])
def test_of_a_users_text_an_even_part_is_read_and_some_is_held_out(tmp_path: Path, files: int, characters: int) -> None:
    (tmp_path / "own").mkdir()
    for n in range(files):
        lines = (f"{n}: this is line {line} of a text of my own.\n" for line in range(characters // 40))
        (tmp_path / "own" / f"{n}.txt").write_text("".join(lines))
    made = Build(Recipe(name="small", text=(str(tmp_path / "own"),), text_share=0.9), tmp_path / "run", quiet=True)
    make(tmp_path / "run" / "curriculum", seed=0, size=100_000)
    made.keep(tokens=0.7e6)  # of which less than half is read: 1.3 of 3 MB
    read, held = ([d.text for d in made.material.real_texts(side)] for side in (False, True))
    assert held and not set(read) & set(held)
    if files == 1:
        assert sum(map(len, read)) == pytest.approx(1.2 * 0.9 * 0.5 * 3.5 * 0.7e6, rel=0.1)
        at = [int(text.split()[4]) for text in read]
        assert max(b - a for a, b in itertools.pairwise(at)) < 0.03 * 75_000  # from all parts of the book
    else:
        assert len(read) + len(held) == 30


def test_what_little_text_holds_nothing_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.txt").write_text("One line alone.")
    made = Build(Recipe(name="small", text=(str(tmp_path / "own.txt"),)), tmp_path / "run", quiet=True)
    make(tmp_path / "run" / "curriculum", seed=0, size=100_000)
    made.keep(tokens=1e6)
    monkeypatch.setattr("liuli.material.place_of", lambda text: 0.5 if "own" in text else place_of(text))
    assert made.material.held_out_texts()
    assert "none of the text is held out" in (tmp_path / "run" / "log.jsonl").read_text()


def test_bad_rows_of_the_users_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "A good row."}\n{"text": 3}\n')
    (tmp_path / "chats.jsonl").write_text('{"question": "Where?", "answer": "Here."}\n{"question": "When?"}\n')
    own = {"text": (str(tmp_path / "text.jsonl"),), "chats": (str(tmp_path / "chats.jsonl"),)}
    with pytest.raises(LiuliError, match="skip-bad"):
        Build(Recipe(name="small", **own), tmp_path / "run", quiet=True).material.check()
    Build(Recipe(name="small", skip_bad=True, **own), tmp_path / "run", quiet=True).material.check()
    assert "1 bad rows were skipped" in (tmp_path / "run" / "log.jsonl").read_text()


def test_the_time_of_a_start_that_was_stopped_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: Build) -> None:
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Build, "curriculum", stopped)
    for start in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            build(RECIPE, tmp_path / "run", quiet=True)
        assert Build(RECIPE, tmp_path / "run", quiet=True).spent["curriculum"] >= 0.2 * start


def test_the_users_text_is_not_mixed_with_lessons_where_it_is_measured(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"It is the {n}th."}) + "\n" for n in range(900)))
    made = Build(Recipe(name="small", text=(str(tmp_path / "text.jsonl"),)), tmp_path, quiet=True)
    made.keep(tokens=1e6)
    make(tmp_path / "curriculum", seed=0, size=300_000)
    held = made.material.held_out_texts()
    assert {d.language for d in held} == {"en", "zh"}
    assert all(d.text.startswith("It is the ") for d in held if d.language == "en")
