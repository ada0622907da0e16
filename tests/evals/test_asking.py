"""Who is asked what, how much counts, and that the whole examination runs on a real (if clueless) model."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from liuli.cli import app
from liuli.curriculum import skills
from liuli.engine import Engine, Model
from liuli.errors import UsageError
from liuli.evals import HEADLINES, evaluate
from liuli.evals import skills as room
from liuli.evals.headline import weights
from liuli.evals.skills import Item, Result, ask, ask_all, cell_of, deal, table
from liuli.evals.speed import speed
from liuli.evals.talk import has_loop, repeated_share, talk
from liuli.model import Transformer, qwen3, save
from liuli.text import Message, Tokenizer


def item(skill: str, number: int, language: str = "en", split: str = "train", question: str = "?") -> Item:
    return {
        "id": f"{skill}.{language}.{split}.{number}", "skill": skill, "language": language, "split": split,
        "messages": [{"role": "user", "content": question}], "answer": f"It is {number}.", "check": "value",
        "accept": [str(number)], "reject": [],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    place = tmp_path_factory.mktemp("model")
    Tokenizer.train(["What is 2 + 2? It is 4.", "二加二等于几？是四。"] * 20, 320).save(place / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(qwen3(Tokenizer.load(place / "tokenizer").vocab_size, 32, 2, context=64))
    save(model, place / "random", tokenizer_folder=place / "tokenizer", provenance={"stage": "pretrain"})
    return place / "random"


def test_rounds_take_one_of_every_cell_and_limit_counts_per_cell() -> None:
    items = [item("a", n) for n in range(5)] + [item("b", n, split="names") for n in range(2)] + [item("c", 0, "zh")]
    rounds = deal(items)
    assert [len(one) for one in rounds] == [3, 2, 1, 1, 1]
    assert sorted(i["id"] for one in rounds for i in one) == sorted(i["id"] for i in items)
    assert Counter(cell_of(i) for one in deal(items, limit=2) for i in one) == {
        ("a", "en", "train"): 2, ("b", "en", "names"): 2, ("c", "zh", "train"): 1,
    }  # fmt: skip


def test_a_headline_figure_on_few_cells_is_asked_as_often_as_one_on_many() -> None:
    cells = [("remember_name", "en", split) for split in ("train", "names", "templates")]
    cells += [(skill, "en", "templates") for skill in skills() if skills()[skill].family == "facts"]
    items = [item(skill, n, language, split) for skill, language, split in cells for n in range(20)]
    first = Counter(cell_of(i) for i in deal(items, often=weights(cells))[0])
    assert first["remember_name", "en", "train"] == 1  # not part of the figure
    assert first["remember_name", "en", "names"] == first["remember_name", "en", "templates"] == 6
    assert {first[cell] for cell in cells[3:]} == {1}


class Clock:
    """Stands in for the machine's clock: goes on only by work, a start-up for each batch and a time for each item."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float) -> None:
        self.now, self.each = 0.0, each
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(room, "ask", self.ask)

    def ask(self, engine: Any, items: list[Item], max_tokens: int) -> list[Result]:
        self.now += self.each * (8 + len(items))
        return [Result(i, [], False) for i in items]


@pytest.mark.parametrize(("seconds", "at_least", "at_most"), [(1, 64, 64), (100, 64, 64), (1100, 900, 1092)])
def test_asking_ends_in_time_and_is_fair_wherever_it_ends(
    monkeypatch: pytest.MonkeyPatch, seconds: float, at_least: int, at_most: int
) -> None:
    clock = Clock(monkeypatch, each=1.0)
    items = [item(skill, n) for skill in "abcd" for n in range(1000)]
    results = ask_all(None, items, seconds=seconds)  # type: ignore[arg-type]
    assert at_least <= len(results) <= at_most and (clock.now <= seconds or len(results) == 64)
    counts = Counter(result.cell for result in results)
    assert max(counts.values()) - min(counts.values()) <= 1  # whole rounds and a part of the next one


def test_without_a_budget_everything_is_asked_and_a_first_round_cut_short_has_an_order_of_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock(monkeypatch, each=1.0)
    items = [item(f"skill{skill:03}", n) for skill in range(300) for n in range(3)]
    assert len(ask_all(None, items)) == 900  # type: ignore[arg-type]
    first = [ask_all(None, items, seconds=1) for _ in range(2)]  # type: ignore[arg-type]
    assert first[0] == first[1] and len({result.cell for result in first[0]}) == 64
    assert max(result.cell for result in first[0]) > ("skill250",)  # not the first 64 by name


@pytest.mark.parametrize("each", [0.001, 0.01, 0.1])
def test_the_whole_examination_ends_in_time_whatever_the_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: float
) -> None:
    clock = Clock(monkeypatch, each)
    lines = [item(f"s{s}", n, language) for s in range(60) for n in range(40) for language in ("en", "zh")]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(i) + "\n" for i in lines))
    generate = Engine.generate

    def slow(engine: Engine, prompts: Any, sampling: Any) -> Any:
        clock.now += each * (8 + len(prompts))
        return generate(engine, prompts, sampling)

    monkeypatch.setattr(Engine, "generate", slow)
    monkeypatch.setattr(sys.modules["liuli.evals.evaluate"], "speed", lambda engine, seconds: {})
    figures = evaluate(folder, curriculum=tmp_path, seconds=20)
    assert figures["seconds"] <= 20
    assert all(8 <= figures["talk"][language]["n"] <= 48 for language in ("en", "zh"))
    assert (figures["talk"]["en"]["n"] == 48) == (each < 0.1)
    assert 64 <= figures["asked"]["asked"] < len(lines) or each == 0.001


def test_answers_meet_their_own_questions_and_too_long_ones_are_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        room,
        "reply_many",
        lambda engine, asked, sampling, tools: [[Message("assistant", a[-1].content)] for a in asked],
    )
    items = [
        item("a", 1, question="1"),
        item("a", 2, question="long " * 99),
        item("a", 3, question="4"),
        item("b", 5, question="5"),
    ]
    results = ask(Model(folder).engine, items, max_tokens=8)
    assert [r.item["id"] for r in results] == [i["id"] for i in items]
    assert [r.right for r in results] == [True, False, False, True]
    assert results[1].said == []
    assert [(row["skill"], row["right"], row["n"]) for row in table(results)] == [("a", 1, 3), ("b", 1, 1)]


@pytest.mark.parametrize(
    ("tokens", "looping"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], False),
        ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3, 1, 2, 9], False),  # not quite three times
        ([7, 7, 7], False),  # ha ha ha
        ([7] * 8, True),
        ([], False),
    ],
)
def test_a_loop_is_a_block_three_times_in_a_row(tokens: list[int], looping: bool) -> None:
    assert has_loop(tokens) == looping


def test_repeated_share_counts_four_grams_seen_before() -> None:
    assert repeated_share([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)  # 1234 2341 3412 4123 1234
    assert repeated_share([1, 2, 3]) == 0.0


def test_speed_is_measured_with_end_tokens_ignored_and_put_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Model(folder).engine
    stops, generate, read = engine.stops, engine.generate, list[int]()

    def counted(prompts: list[list[int]], sampling: Any) -> Any:
        if len(prompts[0]) > 2:
            read.append(len(set(map(tuple, prompts))))  # equal prompts would be read once
        return generate(prompts, sampling)

    monkeypatch.setattr(engine, "generate", counted)
    figures = speed(engine, seconds=0.1)
    assert set(read) == {8}
    assert engine.stops == stops
    assert figures["parameter_bytes"] == 4 * sum(p.numel() for p in engine.model.parameters())  # float32
    assert figures["peak_rss_bytes"] > 50e6  # torch alone takes more
    assert min(figures[f"{key}_tokens_per_s"] for key in ("prefill", "decode_1", "decode_16")) > 0


def test_talk_counts_answers_that_end_by_themselves(folder: Path) -> None:
    engine = Model(folder).engine
    prompts = [[engine.tokenizer.bos, engine.tokenizer.user]] * 6
    figures = talk(engine, prompts)
    answers = engine.generate(prompts, room.Sampling(temperature=0.8, top_p=0.95, max_tokens=200, seed=0))
    assert figures["n"] == 6
    assert figures["ended"] == sum(a.stopped_by == "end" for a in answers) / 6
    assert 0 < figures["length"] <= 64


def test_eval_of_a_folder_measures_everything_and_writes_what_it_returns(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "questions").mkdir()
    lines = [item(s, n, language) for s in ("a", "b") for n in range(3) for language in ("en", "zh")]
    (tmp_path / "questions" / "eval.jsonl").write_text("".join(json.dumps(i) + "\n" for i in lines))
    (tmp_path / "text.txt").write_text("What is 2 + 2? It is 4.")
    figures = evaluate(
        folder, curriculum=tmp_path / "questions", texts=[tmp_path / "text.txt"], limit=2, seconds=2, out=tmp_path
    )
    assert json.loads((tmp_path / "eval.json").read_text()) == json.loads(json.dumps(figures))
    assert {row["n"] for row in figures["skills"]} == {2} and len(figures["skills"]) == 4
    assert figures["asked"] == {"asked": 8, "of": 12}
    assert figures["bits"]["en"]["bytes"] == len("What is 2 + 2? It is 4.")
    assert {"speed", "talk", "headline", "mistakes", "model", "machine", "versions"} <= figures.keys()
    with pytest.raises(UsageError):
        evaluate(folder, curriculum=tmp_path)


def test_the_command_prints_tables_or_one_json_object(folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["eval", str(folder), "--seconds", "1", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    assert "random" in run.output and "writing 16" in run.output
    run = CliRunner().invoke(app, ["eval", str(folder), "--seconds", "1", "--out", str(tmp_path), "--json"])
    assert json.loads(run.stdout)["model"]["name"] == "random"


def test_eval_of_a_run_reads_its_held_out_text_and_leaves_its_figures_alone(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "laptop"
    (run / "rows").mkdir(parents=True)
    shutil.copytree(folder, run / "chat")
    held = [{"text": "What is 2 + 2?", "language": "en"}, {"text": "二加二", "language": "zh"}]
    (run / "rows" / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    for name in ("eval.json", "status.json"):
        (run / name).write_text('{"all": "there is"}')
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    printed = CliRunner().invoke(app, ["eval", str(run / "chat"), "--seconds", "1"])
    assert printed.exit_code == 0, printed.output
    assert "中文" in printed.output and "bits per byte" in printed.output and "--out" in printed.output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert CliRunner().invoke(app, ["eval", str(run / "chat"), "--seconds", "1", "--out", str(run)]).exit_code == 0
    bits = json.loads((run / "eval.json").read_text())["bits"]
    assert (bits["en"]["bytes"], bits["zh"]["bytes"]) == (14, 9)
    (tmp_path / "mine.txt").write_text("It is 4.")
    said = CliRunner().invoke(
        app, ["eval", str(run / "chat"), "--seconds", "1", "--text", str(tmp_path / "mine.txt"), "--json"]
    )
    assert list(json.loads(said.stdout)["bits"]) == ["en"]


def test_every_headline_figure_rests_on_skills_the_curriculum_has() -> None:
    for one in HEADLINES:
        assert any(one.covers(skill) for skill in skills()), one.name
        assert all(skill in skills() for skill in one.skills), one.name
