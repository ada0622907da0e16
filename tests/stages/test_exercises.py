"""What `liuli grpo` and `liuli ppo` ask, and what the answers earn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from liuli.aligning import exercises, items_of, questions
from liuli.build import practice_items
from liuli.curriculum import key_of
from liuli.errors import LiuliError
from liuli.files import read_lines, write_file
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import RewardOptions, compare, reward
from liuli.stages.rollout import Rollouts, as_rollouts
from liuli.stages.training import write_model
from liuli.text import Message, ReadReport, Tokenizer
from liuli.text.tokenizer import SMALLEST
from tests.engine.conftest import byte_tokenizer, make_model
from tests.stages.conftest import CONTEXT, PAIRS, ask, comparisons, quiet, say

SKILLS = ["capital", "add_steps"]


def answered(prompts: Sequence[tuple[Message, ...]], said: Sequence[tuple[int, str]]) -> Rollouts:
    """Answers to prompts by their numbers, as if they were drawn."""
    numbers, answers = [number for number, _ in said], [say(text) for _, text in said]
    rollouts = as_rollouts([prompts[number] for number in numbers], answers, byte_tokenizer(), 4096)
    return replace(rollouts, prompt_B=torch.tensor(numbers))


def turned(items: Sequence[dict[str, str]]) -> list[tuple[int, str]]:
    """To each item its own answer, and that of the next with another; not in the order of the items."""
    found = []
    for number in reversed(range(len(items))):
        others = (items[(number + step) % len(items)] for step in range(1, len(items)))
        other = next(item for item in others if item["answer"] != items[number]["answer"])
        found += [(number, items[number]["answer"]), (number, other["answer"])]
    return found


def test_skills_pay_one_for_the_answer_to_the_question_that_was_asked_and_nothing_for_another(
    model: Path, tmp_path: Path
) -> None:
    asked, earn, known = exercises(model, None, SKILLS, None, 3, False, False, quiet(tmp_path))
    items = items_of(SKILLS, model, 3)
    assert {item["skill"] for item in items} == set(SKILLS) and known == {"skills": SKILLS}
    assert [prompt[-1].content for prompt in asked] == [item["messages"][-1]["content"] for item in items]
    capitals = [number for number, item in enumerate(items) if item["skill"] == "capital"]
    said = [(capitals[number], text) for number, text in turned([items[number] for number in capitals])]
    reward = earn(answered(asked, said))
    assert reward.scores_B.tolist() == [1.0, 0.0] * len(capitals)
    assert reward.truth_B is not None and torch.equal(reward.truth_B, reward.scores_B)
    silent = replace(answered(asked, said[:1]), produced=((),))
    assert earn(silent).scores_B.tolist() == [0.0]


def test_skills_beside_lessons_ask_nothing_that_their_examination_asks(model: Path, tmp_path: Path) -> None:
    free = items_of(["capital"], model, 3)
    lessons = tmp_path / "curriculum"
    lessons.mkdir()
    examined = free[: len(free) // 2]
    write_file(lessons / "eval.jsonl", (json.dumps(item).encode() + b"\n" for item in examined))
    taken = {key_of(item) for item in read_lines(lessons / "eval.jsonl")}
    left = items_of(["capital"], model, 3)
    assert left and not taken & {key_of(item) for item in left}


def test_a_file_of_conversations_asks_its_last_questions_and_lessons_are_graded_by_the_truth(tmp_path: Path) -> None:
    talks = [
        [ask("a")[0], say("b")[0], ask("c")[0], say("d")[0]],
        [Message("system", "s"), ask("e")[0]],
        [Message("system", "alone"), say("f")[0]],
    ]
    file = tmp_path / "talks.jsonl"
    write_file(file, (json.dumps({"messages": [m.to_dict() for m in talk]}).encode() + b"\n" for talk in talks))
    report = ReadReport()
    asked, truth = questions(file, True, report)
    assert report.skipped == 1 and "nobody asks anything" in report.reasons[0]
    assert [[m.content for m in prompt] for prompt in asked] == [["a", "b", "c"], ["s", "e"]] and truth is None
    lessons = tmp_path / "lessons"
    lessons.mkdir()
    write_file(lessons / "eval.jsonl", [])
    asked, truth = questions(lessons, False, ReadReport())
    assert truth is not None
    numbers = [n for n, prompt in enumerate(asked) if "capital" in prompt[-1].content][:5]
    items = practice_items(lessons, 0)
    said = [(n, text) for n in numbers for text in (items[n]["answer"], "I don't know.", "It is Atlantis.")]
    assert numbers and truth(answered(asked, said)).tolist() == [1.0, -0.5, -1.0] * len(numbers)


def test_a_reward_model_that_reads_other_tokens_is_refused_before_anything_is_drawn(
    model: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.train(["yes yes yes well well well"], SMALLEST + 4)
    tokenizer.save(tmp_path / "other tokenizer")
    other = make_model("qwen3", CONTEXT, vocab_size=tokenizer.vocab_size)
    write_model(other, tmp_path / "other", tokenizer, tmp_path / "other tokenizer", {"seed": 0})
    log, judge, options = quiet(tmp_path), tmp_path / "judge", RewardOptions(members=1)
    reward(tmp_path / "other", compare(PAIRS, tokenizer, CONTEXT), judge, options=options, log=log)
    file = tmp_path / "asked.jsonl"
    write_file(file, [b'{"prompt": "a", "completion": "b"}\n'])
    with pytest.raises(LiuliError, match="reads other tokens"):
        exercises(model, file, [], judge, 0, False, False, log)
    with pytest.raises(LiuliError, match="reads other tokens"):
        ppo(model, judge, [ask("a")], tmp_path / "out", options=PPOOptions(steps=1), log=log)
    assert not (tmp_path / "out").exists()
    assert len(exercises(tmp_path / "other", file, [], judge, 0, False, False, log)[0]) == 1


def test_a_reward_model_pays_its_combined_score(model: Path, tmp_path: Path) -> None:
    log, judge = quiet(tmp_path), tmp_path / "judge"
    reward(model, comparisons(), judge, options=RewardOptions(members=3), log=log)
    file = tmp_path / "asked.jsonl"
    write_file(file, [b'{"prompt": "a", "completion": "b"}\n', b'{"prompt": "c", "completion": "d"}\n'])
    found = {}
    for kind in ("cautious", "mean", "min"):
        asked, earn, _ = exercises(model, file, [], judge, 0, False, False, log, kind)
        found[kind] = earn(answered(asked, [(0, "yes!"), (1, "well")]))
    members_EB = found["mean"].members_EB
    assert members_EB is not None and len(members_EB) == 3
    torch.testing.assert_close(found["mean"].scores_B, members_EB.mean(0))
    torch.testing.assert_close(found["min"].scores_B, members_EB.amin(0))
    torch.testing.assert_close(found["cautious"].scores_B, members_EB.mean(0) - 0.5 * members_EB.std(0, correction=0))
