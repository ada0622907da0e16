"""What a stage refuses to begin or to go on with, and whether it names the cause."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from liuli.aligning import hold_out
from liuli.cli import app
from liuli.engine import Engine
from liuli.errors import LiuliError, UsageError
from liuli.files import read_json, read_lines, write_json
from liuli.model import load
from liuli.stages.dpo import DPOOptions, dpo
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import RewardOptions, load_judge, reward
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions
from liuli.text import Rows, pack_conversations, pack_documents, render
from liuli.train import measure_machine
from liuli.train.policy import group_advantages, importance_weights
from liuli.train.trace import read_trace, traced_steps
from tests.engine.conftest import byte_tokenizer, make_model
from tests.stages.conftest import CONTEXT, PAIRS, ask, comparisons, quiet, say
from tests.stages.test_stages import OFTEN, exclaims, run_stage


def judge_of(model: Path, folder: Path, patch: pytest.MonkeyPatch, accuracy: float) -> Path:
    """A reward model that was right about this share of 400 held-out comparisons."""
    patch.setattr("liuli.stages.reward.examine", lambda *_: {"accuracy": accuracy, "held_out": 400.0})
    options, log = RewardOptions(members=2), quiet(folder.parent / "log")
    reward(model, comparisons(PAIRS[:10]), folder, options=options, log=log, held_out=comparisons(PAIRS[10:]))
    return folder


def test_practice_does_not_begin_with_a_reward_model_no_better_than_chance(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = judge_of(model, tmp_path / "poor", monkeypatch, 0.54)
    options = PPOOptions(steps=1, answers=4, max_tokens=4, **OFTEN)
    with pytest.raises(LiuliError, match="no better than chance"):
        ppo(model, poor, [ask("a")], tmp_path / "out", options=options, log=quiet(tmp_path))
    load_judge(judge_of(model, tmp_path / "good", monkeypatch, 0.7), model)


def test_a_reward_model_of_another_tokenizer_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(model, tmp_path / "judge", monkeypatch, 0.7)
    tokens = json.loads((judge / "tokenizer.json").read_text())
    (judge / "tokenizer.json").write_text(json.dumps(tokens, indent=1) + "\n")
    with pytest.raises(LiuliError, match="reads other tokens"):
        load_judge(judge, model)


def test_held_out_comparisons_share_no_prompt_with_those_learned_from(model: Path, tmp_path: Path) -> None:
    with pytest.raises(LiuliError, match="2 held-out prompts are among those learned from"):
        data, held_out = comparisons(PAIRS[:20]), comparisons(PAIRS[18:])
        reward(model, data, tmp_path / "o", options=RewardOptions(), log=quiet(tmp_path), held_out=held_out)
    with pytest.raises(LiuliError, match="2 held-out prompts are among those learned from"):
        dpo(model, data, tmp_path / "o", options=DPOOptions(), log=quiet(tmp_path), held_out=held_out)
    train, held_out = hold_out([replace(p, chosen=say(f"{n}!")) for n in range(3) for p in PAIRS], *facts())
    assert not set(train.asked) & set(held_out.asked) and len(train) + len(held_out) == 3 * len(PAIRS)


def test_rows_and_a_judge_that_do_not_fit_the_model_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = judge_of(model, tmp_path / "judge", monkeypatch, 0.7)
    made = {"long": (CONTEXT * 2, 20), "foreign": (CONTEXT, 5000)}
    for name, (T, largest) in made.items():
        pack_documents([[16 + n, largest] * T for n in range(4)], T, tmp_path / name, vocab_size=largest + 1)
    chats = pack_conversations([render([*ask("q"), *say("a")], byte_tokenizer())], CONTEXT, tmp_path / "chats")
    options: Any = PPOOptions(steps=1, answers=4, max_tokens=4, ptx=0.5, **OFTEN)
    for name, why in (("long", "rows of 128 tokens do not fit"), ("foreign", "the rows hold token 5000")):
        rows = Rows.open(tmp_path / name)
        with pytest.raises(LiuliError, match=why):
            ppo(*(model, judge, [ask("a")], tmp_path / "p"), options=options, log=quiet(tmp_path), ptx_rows=rows)
        with pytest.raises(LiuliError, match=why):
            options_here = TrainOptions(steps=1, replay=0.5)
            sft(model, chats.folder, tmp_path / "s", options=options_here, log=quiet(tmp_path), replay=rows.folder)
    config = read_json(judge / "config.json")
    write_json(judge / "config.json", config | {"max_position_embeddings": CONTEXT // 2})
    with pytest.raises(LiuliError, match="reads 32 tokens at most"):
        load_judge(judge, model)


@pytest.mark.parametrize("stage", ["dpo", "grpo"])
def test_weights_that_are_no_numbers_are_not_written(model: Path, tmp_path: Path, stage: str) -> None:
    rest: Any = {"log": quiet(tmp_path)}
    with pytest.raises(LiuliError, match=r"no numbers any more|off its own by inf|not a number"):
        if stage == "dpo":
            dpo(model, comparisons(), tmp_path / "o", options=DPOOptions(lr=1e30), **rest)
        else:
            options = GRPOOptions(steps=2, answers=8, group=4, max_tokens=4, lr=1e30, most_drift=1e9)
            grpo(model, [ask("a")], tmp_path / "o", reward=exclaims, options=options, **rest)
    assert not (tmp_path / "o").exists()


def facts() -> Any:
    return byte_tokenizer(), CONTEXT


def test_dpo_tells_what_held_out_comparisons_say_and_what_was_too_long(model: Path, tmp_path: Path) -> None:
    options = DPOOptions(epochs=4, pairs=10, lr=1e-3)
    figures = dpo(
        *(model, comparisons(PAIRS[:30]), tmp_path / "o"),
        options=options,
        log=quiet(tmp_path),
        held_out=comparisons(PAIRS[30:]),
    )
    assert figures["held_out"] == 10 and figures["held_out_accuracy"] > 0.8
    lines = [{"prompt": f"q{n}", "chosen": f"{n} yes!", "rejected": f"{n} well"} for n in range(60)]
    lines += [lines[0], {"prompt": "q1", "chosen": "1 well", "rejected": "1 yes!"}]
    lines += [{"prompt": f"long {n}", "chosen": "a" * CONTEXT, "rejected": "b"} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "rows").mkdir()  # of the run that the model was built in
    (tmp_path / "rows" / "held_out.jsonl").write_text('{"text": "What nobody was taught.", "language": "en"}\n')
    command = ["dpo", str(model), str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "run" / "o")]
    command += ["--option", "lr=0.01"]
    done = CliRunner().invoke(app, command)
    said = " ".join(done.output.split())
    assert done.exit_code == 0, said
    assert "3 comparisons too long" in said and "1 stand twice, 2 are contradicted" in said
    assert "held_out_accuracy" in said
    (found,) = re.findall(r"([\d.]+) bits per byte before, ([\d.]+) after", said)
    before, after = map(float, found)
    assert before != after and 4 < before < 12


@pytest.mark.parametrize("budget", [{}, {"steps": 1, "minutes": 1.0}])
def test_practice_wants_one_budget(budget: dict[str, Any], model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="budget is given once"):
        grpo(model, [ask("a")], tmp_path / "o", reward=exclaims, options=GRPOOptions(**budget), log=quiet(tmp_path))


def test_the_cause_is_named_where_engine_and_trainer_disagree(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import liuli.stages.learn as room

    def cause(run: str, **more: Any) -> str | None:
        with pytest.raises(LiuliError, match="engine and trainer disagree") as caught:
            run_stage("grpo", model, tmp_path / run, **more)
        return caught.value.fix

    machine = replace(measure_machine(), dtype="float32")
    monkeypatch.setattr("liuli.stages.training.measure_machine", lambda: machine)
    with monkeypatch.context() as patch:
        stale = Engine(make_model("qwen3", CONTEXT, seed=5), byte_tokenizer())
        patch.setattr(room, "Engine", lambda *args, **more: stale)
        assert "other weights" in str(cause("stale", most_drift=0.2))
    with monkeypatch.context() as patch:

        def leaky(folder: Path, device: str | None = None) -> Any:
            found = load(folder, device)
            for config in (found.config, *(block.config for block in found.blocks)):
                object.__setattr__(config, "dropout", 0.3)
            return found.train()

        patch.setattr(room, "load", leaky)
        assert "dropout is on" in str(cause("leaky", most_drift=0.05))
    with monkeypatch.context() as patch:  # the engine computes in float32, the trainer in bfloat16
        narrow = replace(measure_machine(), dtype="bfloat16")
        patch.setattr("liuli.stages.training.measure_machine", lambda: narrow)

        def exact(model: Any, *args: Any, **more: Any) -> Engine:
            twin = load(tmp_path / "model")
            return Engine(twin, *args, **more)

        patch.setattr(room, "Engine", exact)
        assert "too coarse" in str(cause("coarse", most_drift=1e-4))


def test_what_an_engine_of_other_numerics_drew_weighs_as_the_trainer_would_have_drawn_it(
    model: Path, tmp_path: Path
) -> None:
    trainer, sampler = torch.tensor([[0.0, -1.0, -2.0]]), torch.tensor([[0.0, -1.5, -1.0]])
    mask = torch.tensor([[False, True, True]])
    found = importance_weights(trainer, sampler, mask, 1.2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.2, math.exp(-1.0)]]))
    same = importance_weights(sampler, sampler, mask, 2.0)
    assert same.tolist() == [[0, 1, 1]]
    plain = load(run_stage("grpo", model, tmp_path / "plain"))
    weighed = load(run_stage("grpo", model, tmp_path / "weighed", most_weight=2.0))
    for one, other in zip(plain.parameters(), weighed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)  # engine and trainer differ by bfloat16 alone


def test_without_a_baseline_an_advantage_is_the_reward() -> None:
    rewards = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert torch.equal(group_advantages(rewards, "none"), rewards)


def test_a_method_without_values_tells_none(model: Path, tmp_path: Path) -> None:
    run_stage("grpo", model, tmp_path)
    (steps,) = traced_steps(tmp_path).values()
    tokens = read_trace(tmp_path, "out", steps[0])["tokens"]
    assert set(tokens["value"]) == set(tokens["return"]) == {None}
    assert any(x is not None for x in tokens["advantage"])
    assert not any("explained_variance" in line for line in read_lines(tmp_path / "log.jsonl"))
