"""A reward model that learns from noisy comparisons, against the best that anyone could know of them."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from liuli.model import Transformer, qwen3
from liuli.stages.reward import RewardOptions, compare, reward
from liuli.stages.training import write_model
from liuli.text import Message, Preference
from liuli.train import RunLog, StageState
from liuli.train.preference import bayes_accuracy
from tests.engine.conftest import byte_tokenizer

WORTH = {"a": 1.2, "b": 0.4, "c": -0.3, "d": -1.3}  # of each letter of an answer
LABELS = 20  # of a held-out pair, shared out as its odds say, so that the labels' own chance does not blur the figures


def worth(answer: str) -> float:
    """What an answer is really worth."""
    return sum(WORTH[letter] for letter in answer)


def answers(random: Random, count: int) -> list[tuple[str, str]]:
    """Pairs of two different answers of four letters."""
    return [tuple(random.sample(["".join(random.choices("abcd", k=4)) for _ in range(9)], 2)) for _ in range(count)]


def ask(number: int) -> tuple[Message, ...]:
    return (Message("user", f"{number}?"),)


def preference(number: int, better: str, worse: str, group: str = "") -> Preference:
    return Preference(ask(number), (Message("assistant", better),), (Message("assistant", worse),), group=group)


@pytest.mark.parametrize("seed", range(5))
def test_a_reward_model_is_as_right_as_anyone_can_be_and_as_sure_as_it_is_right(seed: int, tmp_path: Path) -> None:
    random, tokenizer = Random(seed), byte_tokenizer()
    pairs = []
    for number, (one, other) in enumerate(answers(random, 4000)):  # Bradley and Terry's labels
        wins = random.random() < torch.sigmoid(torch.tensor(worth(one) - worth(other)))
        pairs.append(preference(number % 8, *((one, other) if wins else (other, one)), group=str(number)))
    held_out, odds = [], []
    for one, other in answers(random, 300):
        odds.append(float(torch.sigmoid(torch.tensor(worth(one) - worth(other)))))
        for label in range(LABELS):
            held_out.append(preference(9, *((one, other) if label < round(LABELS * odds[-1]) else (other, one))))
    tokenizer.save(tmp_path / "tokenizer")
    torch.manual_seed(seed)
    model = Transformer(qwen3(tokenizer.vocab_size, 32, 2, context=64, heads=4, kv_heads=2, head_size=8))
    write_model(model, tmp_path / "model", tokenizer, tmp_path / "tokenizer", {"seed": seed})
    log = RunLog(tmp_path, [StageState("stage", "stage")], quiet=True, tensorboard=False)
    log.begin("stage")
    figures = reward(
        tmp_path / "model",
        compare(pairs, tokenizer, 64),
        tmp_path / "judge",
        options=RewardOptions(prompts=32, seed=seed),
        log=log,
        held_out=compare(held_out, tokenizer, 64),
        prompts=[ask(number) for number in range(8)],
    )
    assert figures["accuracy"] >= bayes_accuracy(torch.tensor(odds)) - 0.02
    assert figures["calibration"] <= 0.03
