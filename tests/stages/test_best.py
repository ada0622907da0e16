"""The best of n: what is kept is the highest-scored of what was drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from liuli.aligning import best_here, ends_with, last_words
from liuli.cli import app
from liuli.engine import Engine
from liuli.errors import LiuliError, UsageError
from liuli.files import read_lines
from liuli.model import Transformer
from liuli.stages.best import best_of, most_kl
from liuli.stages.experience import Reward
from liuli.stages.rollout import Rollouts, roll_out
from liuli.stages.training import write_model
from liuli.text import Message, read_preferences
from liuli.train import Machine
from tests.engine.conftest import byte_tokenizer, make_model, scripted

T = byte_tokenizer()


def ask(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


PROMPTS = [ask(f"q{n}") for n in range(40)]


def talkative() -> Transformer:
    """A random model most of whose answers end by themselves within some steps."""
    model = make_model("qwen3", 64)
    with torch.no_grad():
        model.head_VD[T.end] *= 3
    return model


def by_chance(rollouts: Rollouts) -> Reward:
    """A number of each answer that nothing foretells and that no two different answers share."""
    places_T = torch.arange(rollouts.tokens_BT.shape[1])
    mixed_B = (rollouts.tokens_BT * (7919 * places_T + 104_729) * rollouts.mask_BT).sum(1)
    return Reward(torch.frac(mixed_B.double() * 0.6180339887498949).float())


@pytest.mark.parametrize("at_once", [1024, 12])
def test_the_highest_scored_of_all_that_was_drawn_is_kept(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("liuli.stages.best.AT_ONCE", at_once)
    seen: list[tuple[int, float, tuple[Message, ...]]] = []

    def noted(rollouts: Rollouts) -> Reward:
        scores = by_chance(rollouts)
        columns = (rollouts.prompt_B.tolist(), scores.scores_B.tolist(), rollouts.produced, rollouts.finished_B)
        seen.extend((number, score, said) for number, score, said, finished in zip(*columns, strict=True) if finished)
        return scores

    found = list(best_of(Engine(talkative(), T), PROMPTS, noted, 6, max_tokens=10))
    assert [best.number for best in found] == sorted({number for number, _, _ in seen})
    assert len(found) > 20
    for best in found:
        own = [(score, said) for number, score, said in seen if number == best.number]
        assert (best.score, best.produced) == max(own, key=lambda one: one[0])
        assert (best.worst_score, best.worst) == min(own, key=lambda one: one[0])
        assert best.mean == pytest.approx(sum(score for score, _ in own) / len(own))


def test_the_best_of_n_beats_another_draw_in_n_of_n_plus_one_cases() -> None:
    """The closed form for scores without ties; four standard errors."""
    engine, n = Engine(talkative(), T), 4
    prompts = [ask(f"q{number}") for number in range(600)]
    other = roll_out(engine, prompts, max_tokens=20, seeds=[8 * (10_000_000 + number) for number in range(600)])
    scores = by_chance(other).scores_B
    drawn = [0] * len(prompts)  # of each prompt, those that ended by themselves

    def counted(rollouts: Rollouts) -> Reward:
        for number in rollouts.prompt_B[rollouts.finished_B].tolist():
            drawn[number] += 1
        return by_chance(rollouts)

    found = list(best_of(engine, prompts, counted, n, max_tokens=20, seed=1))
    pairs = [(best, float(scores[best.number])) for best in found if other.finished_B[best.number]]
    pairs = [(best, theirs) for best, theirs in pairs if best.score != theirs]  # the same short answer twice
    won = sum(best.score > theirs for best, theirs in pairs) / len(pairs)
    expected = [drawn[best.number] / (drawn[best.number] + 1) for best, _ in pairs]
    error = 4 * sum(p * (1 - p) for p in expected) ** 0.5 / len(pairs)
    assert len(pairs) > 300 and abs(won - sum(expected) / len(pairs)) < error
    assert most_kl(1) == 0 and most_kl(16) == pytest.approx(1.835, abs=1e-3)


def test_prompts_too_long_for_an_answer_are_counted_and_the_others_keep_their_numbers() -> None:
    told: list[str] = []
    prompts = [ask("a" * 500), ask("go"), ask("b" * 500), ask("go")]
    engine = scripted({"go": [20, byte_tokenizer().end]}, context=64)
    found = list(best_of(engine, prompts, by_chance, 2, max_tokens=5, warn=told.append))
    assert [best.number for best in found] == [1, 3] and told == ["2 prompts too long for the context, left out"]


def test_no_answer_that_was_cut_off_is_kept_and_a_best_of_none_is_refused() -> None:
    endless = scripted({"go": [20] * 60}, context=64)
    assert list(best_of(endless, [ask("go")], by_chance, 3, max_tokens=5)) == []
    with pytest.raises(UsageError, match="is none"):
        next(best_of(endless, [ask("go")], by_chance, 0))


def test_the_command_writes_conversations_of_right_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    T.save(tmp_path / "tokenizer")
    write_model(talkative(), tmp_path / "model", T, tmp_path / "tokenizer", {"seed": 0})
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "a", "answer": "7"}\n{"prompt": "b", "answer": "8"}\n', encoding="utf-8")
    scripts = {"a": [*T.encode("It is 7."), T.end], "b": [*T.encode("It is 9."), T.end]}
    model = replace_engine(monkeypatch, scripted(scripts))
    command = ["best", str(tmp_path / "model"), str(tmp_path / "run" / "best.jsonl"), "--tasks", str(tasks), "--n", "2"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert model == [tmp_path / "model"]
    (row,) = read_lines(tmp_path / "run" / "best.jsonl")
    assert [(m["role"], m["content"]) for m in row["messages"]] == [("user", "a"), ("assistant", "It is 7.")]
    assert row["messages"][0]["train"] is False and row["score"] == row["mean"] == 1.0
    tasks.write_text('{"prompt": "b", "answer": "8"}\n', encoding="utf-8")
    none = CliRunner().invoke(app, [*command[:2], str(tmp_path / "run" / "none.jsonl"), *command[3:]])
    assert none.exit_code != 0 and not (tmp_path / "run" / "none.jsonl").exists()


def test_best_and_worst_are_written_as_comparisons_only_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    T.save(tmp_path / "tokenizer")
    write_model(talkative(), tmp_path / "model", T, tmp_path / "tokenizer", {"seed": 0})
    tasks, out = tmp_path / "tasks.jsonl", tmp_path / "run" / "pairs.jsonl"
    tasks.write_text("".join(f'{{"prompt": "{n}", "answer": "{n % 10}"}}\n' for n in range(20)), encoding="utf-8")

    def half_right(
        rollouts: Rollouts,
    ) -> torch.Tensor:  # of each prompt's four answers the first two, but of prompt 3 all
        return torch.tensor([float(i % 4 < 2 or i // 4 == 3) for i in range(len(rollouts))])

    monkeypatch.setattr("liuli.aligning.checked", lambda tasks: half_right)
    command = ["best", str(tmp_path / "model"), str(out), "--tasks", str(tasks), "--pairs", "--max-tokens", "40"]
    done = CliRunner().invoke(app, [*command, "--n", "4"])
    assert done.exit_code == 0, done.output
    pairs = list(read_preferences([out]))
    assert 5 < len(pairs) < 20 and all(pair.chosen != pair.rejected for pair in pairs)
    assert "3" not in {pair.prompt[-1].content for pair in pairs}
    assert isinstance(CliRunner().invoke(app, [*command, "--n", "1"]).exception, UsageError)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(("The answer is 5.", "5"), ("It is 7", "7.0"), ("1,234 apples", "1234"), ("It is .5", "1/2"), ("2/5", "0.4")),
        *(("答案是-5。", "-5"), ("x=−5", "-5"), ("10-5", "5"), ("No.5", "5"), ("so...5", "5"), ("-0.4", "-2/5")),
        *(("Paris!", "paris"), ("答案是五。", "五"), ("It is 3 km.", "3 km"), ("I say no.", "no"), ("no", "no")),
    ],
)
def test_an_answer_is_right_whichever_way_its_number_is_written(answer: str, expected: str) -> None:
    assert ends_with(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *(("The answer is -5.", "5"), ("It is 1.5", "5"), ("2/5", "5"), ("15", "5"), ("5/0", "5"), ("none", "5")),
        *(("", "5"), ("5", ""), ("答案是十五", "五"), ("负五", "五"), ("in the casino", "no"), ("number2", "r2")),
        *(("1.5 km", "5 km"), ("-5 km", "5 km"), ("15 km", "5 km")),
    ],
)
def test_a_part_of_another_number_or_word_is_no_right_answer(answer: str, expected: str) -> None:
    assert not ends_with(answer, expected)


def test_where_the_result_of_a_tool_fills_the_context_nothing_was_answered() -> None:
    assert last_words([Message("assistant", "It is 4."), Message("tool", "5")]) == "" == last_words([])
    assert last_words([Message("tool", "5"), Message("assistant", "It is 5.")]) == "It is 5."


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(LiuliError, match="not a number"):
        list(best_of(Engine(talkative(), T), PROMPTS, lambda r: Reward(torch.full((len(r),), torch.nan)), 2))


def replace_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> list[Path]:
    """Have the command draw from this engine; the folders that it asked for."""
    asked: list[Path] = []

    class Stand:
        def __init__(self, path: Path, **_: object) -> None:
            asked.append(path)
            self.engine = engine

    monkeypatch.setattr("liuli.aligning.Model", Stand)
    return asked


def test_answers_are_drawn_on_the_device_whose_number_format_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []

    def open_it(path: Path, **how: object) -> None:
        opened.append(how)
        raise LiuliError("it was opened")

    apple = Machine("mps", "a Mac", 8, "bfloat16", 1e9, 2e9, 0, compiler=False)
    monkeypatch.setattr("liuli.aligning.measure_machine", lambda: apple)
    monkeypatch.setattr("liuli.aligning.exercises", lambda *given: ([], by_chance, {}))
    monkeypatch.setattr("liuli.aligning.Model", open_it)
    with pytest.raises(LiuliError, match="it was opened"):
        best_here(tmp_path, None, [], None, tmp_path / "run" / "best.jsonl", 2, 8, 0, False, False, False, True)
    assert opened == [{"device": "mps", "dtype": torch.bfloat16}]
