"""The stages that learn from preferences: from folders to folders, killed and gone on, refusing what is wrong."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from liuli.aligning import reward_here
from liuli.build import practice_items
from liuli.curriculum import key_of, practice, prefers, worth
from liuli.curriculum.invent import neighbours
from liuli.curriculum.preferences import PRACTISED, pair_lines
from liuli.engine import Engine
from liuli.errors import LiuliError, UsageError
from liuli.files import read_json, read_lines
from liuli.folder import folder_hash
from liuli.model import load
from liuli.model.scalar import ScalarModel, load_scalar
from liuli.recipe import option_values
from liuli.stages import rollout
from liuli.stages.dpo import DPOOptions, Thumbs, dpo, thumbs
from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.learn import PracticeOptions
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import (
    OWN_ANSWERS,
    RewardOptions,
    check_better_than_chance,
    compare,
    examine,
    normalise,
    reward,
    score_answers,
    shares,
    take_step,
)
from liuli.stages.rollout import ModelActor, Rollouts, Scores, roll_out
from liuli.stages.training import TrainOptions, write_model
from liuli.text import Judged, Message, Preference, Rows, pack_documents
from liuli.text.tokenizer import SMALLEST
from liuli.train import Optimizer, OptimizerOptions, measure_machine
from liuli.train.checkpoint import save_checkpoint
from liuli.train.trace import read_trace, traced_steps
from tests.engine.conftest import byte_tokenizer, make_model
from tests.stages.conftest import CONTEXT, PAIRS, ask, comparisons, quiet, say

# --- the reward model ------------------------------------------------------------------------------------------------


def test_a_reward_model_learns_what_is_preferred_and_its_scores_are_normal(model: Path, tmp_path: Path) -> None:
    options = RewardOptions(epochs=8, prompts=8, members=3)
    unseen = [Preference(ask(f"x{n}"), say(f"{n} so!"), say(f"{n} so")) for n in range(20)]
    held_out = comparisons([Preference(ask("x"), say("a" * CONTEXT), say("b")), *unseen])
    assert held_out.kept == tuple(range(1, 21))
    data = comparisons()
    figures = reward(model, data, tmp_path / "reward", options=options, log=quiet(tmp_path), held_out=held_out)
    assert figures["accuracy"] > 0.9 and figures["held_out"] == 20 and figures["skipped"] == 1
    assert (figures["steps"], figures["seen"], figures["pairs"]) == (40, 320, 40)
    judge = load_scalar(tmp_path / "reward")
    # normal over what the model itself says to these questions, here drawn anew
    asked = [pair.prompt for pair in PAIRS] * 10
    drawn = roll_out(Engine(load(model), byte_tokenizer()), asked, max_tokens=160, seeds=range(7, 7 + 8 * 400, 8))
    scores, each = score_answers(judge, drawn)
    assert abs(float(scores.mean())) < 0.2 and abs(float(scores.std(correction=0)) - 1) < 0.2
    assert float(score_answers(judge, data.answers, "mean")[0].std()) > 1.5
    assert len(each) == 3 and float(each.std(0).max()) > 0  # the members do not all say the same
    assert read_json(tmp_path / "reward" / "liuli.json")["figures"]["accuracy"] == figures["accuracy"]
    with pytest.raises(LiuliError, match="gives no scores"):
        load_scalar(model)


def test_a_reward_model_that_is_no_better_than_chance_is_refused() -> None:
    check_better_than_chance({"accuracy": 0.6, "held_out": 400.0}, "here")
    check_better_than_chance({"pairs": 40.0}, "here")  # it was never examined
    with pytest.raises(LiuliError, match="no better than chance"):
        check_better_than_chance({"accuracy": 0.54, "held_out": 400.0}, "here")


def test_the_command_says_how_many_comparisons_it_saw_and_of_how_many(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("liuli.aligning.check_better_than_chance", lambda figures, out: None)
    lines = [{"prompt": f"q{n}", "chosen": f"{n} yes!", "rejected": f"{n} well"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["epochs=0.2", "prompts=2", "members=1"]
    reward_here(model, [tmp_path / "pairs.jsonl"], tmp_path / "judge", {}, options, False, False)
    figures = read_json(tmp_path / "judge" / "liuli.json")["figures"]
    assert figures["seen"] == 2 * figures["steps"] < figures["pairs"] < 40
    said = f"{figures['steps']:.0f} steps in 0 s saw {figures['seen']:.0f} comparisons, of {figures['pairs']:.0f} to"
    assert re.sub("in [0-9]+ s", "in 0 s", " ".join(capsys.readouterr().err.split())).count(said) == 1


def test_swapped_comparisons_flip_the_gradient(model: Path, tmp_path: Path) -> None:
    flipped = [replace(p, chosen=p.rejected, rejected=p.chosen) for p in PAIRS]
    options = RewardOptions(epochs=4, prompts=8, members=1)
    reward(model, comparisons(flipped), tmp_path / "bad", options=options, log=quiet(tmp_path))
    assert examine(load_scalar(tmp_path / "bad"), comparisons())["accuracy"] < 0.1


def test_answers_too_long_for_the_context_are_counted_and_left_out(model: Path) -> None:
    long = Preference(ask("q"), say("a" * CONTEXT), say("b"), source="pairs.jsonl:7")
    data = comparisons([*PAIRS, long])
    assert data.skipped == 1 and len(data) == len(PAIRS)
    with pytest.raises(LiuliError, match="no comparison is left"):
        compare([long], byte_tokenizer(), CONTEXT)


def test_comparisons_that_the_template_refuses_are_counted_and_all_others_read_as_ever() -> None:
    strict = copy(byte_tokenizer())
    no_system = "{% for m in messages if m.role == 'system' %}{{ raise_exception('no system') }}{% endfor %}"
    strict.chat_template = no_system + strict.chat_template
    odd = Preference((Message("system", "Be kind."), *ask("q")), say("a"), say("b"))
    data = compare([odd, *PAIRS[:3], odd, *PAIRS[3:]], strict, CONTEXT)
    assert data.skipped == 2 and len(data) == len(PAIRS)
    assert torch.equal(data.answers.tokens_BT, comparisons(PAIRS).answers.tokens_BT)


def test_normalising_scales_and_shifts_alone_until_what_is_paid_has_mean_zero_and_deviation_one(model: Path) -> None:
    judge, data = ScalarModel(load(model), 3).eval(), comparisons()
    before = score_answers(judge, data.answers)[1]
    normalise(judge, data.answers)
    paid, after = score_answers(judge, data.answers)
    assert abs(float(paid.mean())) < 1e-3 and abs(float(paid.std(correction=0)) - 1) < 1e-3  # of the combined score
    alike = ((x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True) for x in (after, before))
    torch.testing.assert_close(*alike, rtol=1e-3, atol=1e-3)
    assert float(after.std(1, correction=0).std()) < 1e-3  # no member is louder than another


def test_the_surest_predictions_count_in_the_calibration(model: Path) -> None:
    judge = ScalarModel(load(model), 1).eval()
    judge.score.weight.data *= 1e6  # surer than float32 can tell from certain
    figures = examine(judge, comparisons())
    assert figures["calibration"] == pytest.approx(1 - figures["accuracy"], abs=0.01)


def test_every_member_weighs_its_own_prompts_alike_and_every_prompt_teaches_one(model: Path) -> None:
    data, options = comparisons(), RewardOptions(members=3)
    assert shares(data, RewardOptions(members=2)).any(1).all() and not shares(data, options).all()
    judge = ScalarModel(load(model), 3)
    judge.score.weight.data.zero_()
    optimizer = Optimizer(judge, OptimizerOptions())
    figures = take_step(judge, optimizer, data, torch.arange(40), shares(data, options), options, 0.0)
    assert figures["loss"] == pytest.approx(math.log(2))  # of scores that say nothing, whatever the number of members


def test_a_margin_that_one_comparison_lacks_is_kept_for_the_others() -> None:
    pairs = [replace(pair, margin=margin) for pair, margin in zip(PAIRS, (3.0, None, 2.0), strict=False)]
    margins = comparisons(pairs).margin_P
    assert margins is not None and margins.tolist() == [3.0, 0.0, 2.0]
    assert comparisons(PAIRS).margin_P is None


def test_scores_are_normal_over_prompts_of_all_kinds_however_they_are_sorted_and_no_others_are_rendered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [ask(f"{kind} {number}") for kind in "abcd" for number in range(200)]
    asked += [ask("a" * CONTEXT)] * 200  # that leave no room for an answer
    drawn: list[Any] = []
    rendered: list[int] = []
    data, real = comparisons(), rollout.render_many

    def counted(prompts: Any, *rest: Any, **more: Any) -> Any:
        rendered.append(len(prompts))
        return real(prompts, *rest, **more)

    monkeypatch.setattr(rollout, "render_many", counted)

    def rolled(engine: Engine, prompts: Any, **rest: Any) -> Rollouts:
        drawn.extend(prompts)
        return data.answers

    monkeypatch.setattr("liuli.stages.reward.roll_out", rolled)
    reward(model, data, tmp_path / "r", options=RewardOptions(), log=quiet(tmp_path), prompts=asked)
    assert rendered == [OWN_ANSWERS]
    assert f"{OWN_ANSWERS - len(drawn)} prompts too long" in (tmp_path / "log.jsonl").read_text()
    kinds = [prompt[0].content[0] for prompt in drawn]
    assert len(set(drawn)) == len(drawn) > OWN_ANSWERS // 2
    assert all(kinds.count(kind) > OWN_ANSWERS // 8 for kind in "abcd")


# --- each stage: killed in the middle it goes on to the same bits ----------------------------------------------------


def few_words(rollouts: Rollouts) -> Reward:
    return Reward(-rollouts.mask_BT.sum(1).float())


def exclaims(rollouts: Rollouts) -> Reward:
    marks = [float(said[-1].content.count("e")) if said else 0.0 for said in rollouts.produced]
    return Reward(torch.tensor(marks), None, torch.tensor(marks))


# random weights in bfloat16 are far from float32
OFTEN = {"most_drift": 1.0, "trace_every": 1, "save_every_s": 0.0}


def run_stage(kind: str, model: Path, folder: Path, rm: Path | None = None, **more: Any) -> Path:
    """One stage of three steps or so into `folder/out`."""
    out, log = folder / "out", quiet(folder)
    prompts = [ask(f"say {n}") for n in range(6)]
    if kind == "reward":
        options = RewardOptions(epochs=1, prompts=10, members=2, save_every_s=0)
        reward(model, comparisons(), out, options=options, log=log)
    elif kind == "dpo":
        dpo(model, comparisons(), out, options=DPOOptions(pairs=10, save_every_s=0), log=log)
    elif kind == "kto":
        judged = [Judged(p.prompt, p.chosen if n % 2 else p.rejected, bool(n % 2)) for n, p in enumerate(PAIRS)]
        kto = DPOOptions(kind="kto", pairs=10, save_every_s=0)
        dpo(model, thumbs(judged, byte_tokenizer(), CONTEXT), out, options=kto, log=log)
    elif kind == "grpo":
        options = GRPOOptions(steps=3, answers=8, group=4, max_tokens=6, no_end=0.0, **(OFTEN | more))
        grpo(model, prompts, out, reward=exclaims, options=options, log=log)
    else:
        assert rm is not None
        options = PPOOptions(steps=3, answers=6, epochs=2, max_tokens=6, no_end=0.0, kl_target=6.0, **(OFTEN | more))
        if options.ptx and not (rm.parent / "rows").exists():
            texts = [byte_tokenizer().encode(f"{n} is a number. " * 3) for n in range(60)]
            pack_documents(texts, 32, rm.parent / "rows", vocab_size=SMALLEST)
        rows = Rows.open(rm.parent / "rows") if options.ptx else None
        ppo(model, rm, prompts, out, options=options, log=log, ptx_rows=rows)
    return out


def test_a_round_of_one_step_is_scored_once_and_learns_what_it_learned_from_two_passes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import liuli.stages.learn as learn

    monkeypatch.setattr("liuli.stages.training.measure_machine", lambda: replace(measure_machine(), dtype="float32"))
    score, calls = ModelActor.score, 0

    def counted(self: ModelActor, rollouts: Rollouts) -> Scores:
        nonlocal calls
        calls += torch.is_grad_enabled()
        return score(self, rollouts)

    monkeypatch.setattr(ModelActor, "score", counted)
    once = load(run_stage("grpo", model, tmp_path / "once", minibatches=1))
    assert calls == 3
    assert [sample["step"] for sample in read_lines(tmp_path / "once" / "samples.jsonl")] == [0, 3]
    monkeypatch.setattr(learn, "parts", lambda *_: [None, None])  # as if it were more than one part
    twice = load(run_stage("grpo", model, tmp_path / "twice", minibatches=1))
    for found, wanted in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, {}) for kind in ("reward", "ppo", "grpo", "dpo", "kto")), ("ppo", {"ptx": 0.5, "critic": "reward"})],
)
def test_a_stage_killed_in_the_middle_ends_in_the_same_weights_and_traces(
    kind: str, more: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rm = None
    if kind == "ppo":
        rm = tmp_path / "rm"
        reward(model, comparisons(), rm, options=RewardOptions(members=2), log=quiet(tmp_path / "log"))
    whole = run_stage(kind, model, tmp_path / "whole", rm, **more)

    import liuli.train.steps as steps

    kept, calls = steps.save_checkpoint, 0

    def dies(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        done = kept(*args, **named)
        if calls == 2:
            raise MemoryError("killed")
        return done

    monkeypatch.setattr(steps, "save_checkpoint", dies)
    with pytest.raises(MemoryError):
        run_stage(kind, model, tmp_path / "parts", rm, **more)
    monkeypatch.setattr(steps, "save_checkpoint", kept)
    parts = run_stage(kind, model, tmp_path / "parts", rm, **more)
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (whole, parts))
    assert first == second
    figures = [read_json(folder / "liuli.json")["figures"] for folder in (whole, parts)]
    again = {"seconds": 0, "drift": 0}  # what a second start measures anew
    assert figures[0] | again == figures[1] | again
    if kind in ("ppo", "grpo"):
        assert traced_steps(tmp_path / "parts") == {"out": [1, 2, 3]}
        for step in (1, 2, 3):
            assert read_trace(tmp_path / "parts", "out", step) == read_trace(tmp_path / "whole", "out", step)


@pytest.mark.parametrize(
    ("kind", "other"),
    [*itertools.product(["reward", "ppo", "grpo", "dpo"], ["seed", "model", "data"]), ("ppo", "judge")],
)
def test_a_stage_goes_on_only_from_what_it_was_begun_with(
    kind: str, other: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"model": model, "other": tmp_path / "other"}
    write_model(make_model("qwen3", CONTEXT, seed=5), folders["other"], byte_tokenizer(), model, {"seed": 5})
    for name in ("rm", "other rm") if kind == "ppo" else ():
        options = RewardOptions(members=2, seed=len(name))
        reward(model, comparisons(PAIRS[:10]), tmp_path / name, options=options, log=quiet(tmp_path / "log"))

    def start(changed: str = "") -> dict[str, Any]:
        parent, log, out = folders["other" if changed == "model" else "model"], quiet(tmp_path), tmp_path / "out"
        data = PAIRS[:20] if changed == "data" else PAIRS[:21]
        asked, seed = [pair.prompt for pair in data], int(changed == "seed")
        if kind == "reward":
            reward(parent, comparisons(data), out, options=RewardOptions(save_every_s=0, seed=seed), log=log)
        elif kind == "dpo":
            dpo(parent, comparisons(data), out, options=DPOOptions(pairs=10, save_every_s=0, seed=seed), log=log)
        elif kind == "grpo":
            grpo_options = GRPOOptions(steps=2, answers=8, group=4, max_tokens=6, seed=seed, **OFTEN)
            grpo(parent, asked, out, reward=exclaims, options=grpo_options, log=log)
        else:
            judge = tmp_path / ("other rm" if changed == "judge" else "rm")
            ppo_options = PPOOptions(steps=2, answers=6, max_tokens=6, seed=seed, **OFTEN)
            ppo(parent, judge, asked, out, options=ppo_options, log=log)
        return read_json(out / "liuli.json")

    import liuli.train.steps as steps

    def dies(*args: Any, **more: Any) -> None:
        save_checkpoint(*args, **more)
        raise MemoryError("killed")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(steps, "save_checkpoint", dies)
        start()
    data_hash = {"reward": "pairs_hash", "dpo": "judged_hash"}.get(kind, "prompts_hash")
    named = {"seed": "seed 0, now 1", "model": "parent_hash", "data": data_hash, "judge": "reward_hash"}[other]
    with pytest.raises(UsageError, match=f"begun with other options: .*{named}"):
        start(other)
    made = start()
    assert made["parent_hash"] == folder_hash(model) and len(made["data"][data_hash]) == 64
    assert kind != "ppo" or made["data"]["reward_hash"] == folder_hash(tmp_path / "rm")


# --- options ---------------------------------------------------------------------------------------------------------

EVERY = [TrainOptions, RewardOptions, DPOOptions, PPOOptions, GRPOOptions]


@pytest.mark.parametrize("options", EVERY)
def test_every_option_may_be_given_its_own_default(options: type[Any]) -> None:
    for part in fields(options):
        assert option_values(options, {}, [f"{part.name}={json.dumps(part.default)}"]) == {part.name: part.default}
    if issubclass(options, PracticeOptions):
        url = "http://127.0.0.1:8001"
        assert option_values(options, {}, [f"engine_url={url}"]) == {"engine_url": url}
        with pytest.raises(UsageError, match="engine_url = 7 is not text"):
            option_values(options, {}, ["engine_url=7"])


@pytest.mark.parametrize("change", ["members=0", "prompts=0", "pairs=0", "answers=0", "minibatches=-1", "epochs=0"])
def test_an_option_of_which_nothing_comes_is_refused(change: str) -> None:
    name = change.split("=")[0]
    has = [options for options in EVERY if name in {part.name for part in fields(options)}]
    assert has
    for options in has:
        with pytest.raises(UsageError, match=f"{name} = .* out of range(?s:.*)a number above 0"):
            option_values(options, {}, [change])
        with pytest.raises(UsageError, match=r"seed = -1 is out of range(?s:.*)give 0 or more"):
            option_values(options, {}, ["seed=-1"])
        assert option_values(options, {}, ["seed=0"]) == {"seed": 0}
    with pytest.raises(UsageError, match="at beta = 0 nothing is learned"):
        DPOOptions(beta=0)


@pytest.mark.parametrize(
    ("options", "change", "why"),
    [
        (DPOOptions, "smoothing=0.5", "most comparisons to be flipped"),
        (PPOOptions, "kl_horizon=0", "a number above 0"),
        (PPOOptions, "discount=1.1", "at most 1"),
        (PPOOptions, "trace=1.1", "at most 1"),
    ],
)
def test_an_option_that_would_teach_the_opposite_is_refused(options: type[Any], change: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){change.split('=')[0]} = .*{why}"):
        options(**option_values(options, {}, [change]))


# --- they learn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.0, 2.0])
def test_grpo_wins_what_its_reward_pays_and_what_the_truth_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: float
) -> None:
    prompts = [ask(f"say {n}") for n in range(4)]
    options = GRPOOptions(steps=25, answers=64, group=16, max_tokens=6, lr=3e-3, beta=0.0, most_drift=1.0, truth=truth)

    def paid(rollouts: Rollouts) -> Reward:  # for every byte that is a vowel
        vowels = torch.tensor([16 + ord(letter) for letter in "aeiou"])
        hits = torch.isin(rollouts.tokens_BT, vowels) & rollouts.mask_BT
        hits_B = hits.float().sum(1)
        return Reward(torch.zeros(len(hits_B)), None, hits_B / truth) if truth else Reward(hits_B)

    # an answer need not end by itself to be paid here
    earned = []

    def noted(rollouts: Rollouts) -> Reward:
        reward = paid(rollouts)
        earned.append(float(reward.earned(truth).mean()))
        return reward

    import liuli.stages.grpo as room

    kept = room.grpo_experience

    def all_finished(rollouts: Rollouts, *rest: Any) -> Any:
        return kept(replace(rollouts, finished_B=torch.ones(len(rollouts), dtype=torch.bool)), *rest)

    monkeypatch.setattr(room, "grpo_experience", all_finished)
    grpo(model, prompts, tmp_path / "out", reward=noted, options=options, log=quiet(tmp_path))
    assert sum(earned[-3:]) / 3 > sum(earned[:3]) / 3 + 0.5


def test_dpo_makes_the_preferred_answers_likelier_than_the_others(model: Path, tmp_path: Path) -> None:
    figures = dpo(
        model, comparisons(), tmp_path / "out", options=DPOOptions(epochs=6, pairs=10, lr=1e-3), log=quiet(tmp_path)
    )
    assert figures["accuracy"] > 0.9 and figures["loss"] < 0.69
    assert folder_hash(tmp_path / "out") != folder_hash(model)


@pytest.mark.parametrize("kind", ["sigmoid", "kto"])
def test_few_comparisons_are_all_learned_from_in_steps_that_move(model: Path, tmp_path: Path, kind: str) -> None:
    data: Any = comparisons(PAIRS[:21])
    if kind == "kto":
        judged = [
            Judged(p.prompt, said, good) for p in PAIRS[:11] for said, good in ((p.chosen, True), (p.rejected, False))
        ]
        data = thumbs(judged, byte_tokenizer(), CONTEXT)
    figures = dpo(model, data, tmp_path / "out", options=DPOOptions(kind=kind, lr=1e-3), log=quiet(tmp_path))
    steps = [line for line in read_lines(tmp_path / "log.jsonl") if "step" in line and "loss" in line]
    assert len(steps) == 11 and figures["accuracy"] > 0.7  # two a step: sixteen would leave some with one


def test_kto_learns_from_thumbs_and_refuses_those_of_one_kind(model: Path, tmp_path: Path) -> None:
    judged = [Judged(p.prompt, p.chosen, True) for p in PAIRS[:20]] + [
        Judged(p.prompt, p.rejected, False) for p in PAIRS[20:]
    ]
    data = thumbs(judged, byte_tokenizer(), CONTEXT)
    assert isinstance(data, Thumbs)
    options = DPOOptions(kind="kto", epochs=6, pairs=10, lr=1e-3)
    assert dpo(model, data, tmp_path / "out", options=options, log=quiet(tmp_path))["accuracy"] > 0.7
    with pytest.raises(LiuliError, match="same way"):
        thumbs(judged[:20], byte_tokenizer(), CONTEXT)
    with pytest.raises(UsageError, match="does not learn from this"):
        dpo(model, comparisons(), tmp_path / "other", options=options, log=quiet(tmp_path))


# --- guards ----------------------------------------------------------------------------------------------------------


def test_an_engine_with_other_weights_is_noticed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import liuli.stages.learn as room

    stale = Engine(make_model("qwen3", CONTEXT, seed=5), byte_tokenizer())
    monkeypatch.setattr(room, "Engine", lambda *args, **more: stale)
    with pytest.raises(LiuliError, match="engine and trainer disagree"):
        run_stage("grpo", model, tmp_path / "run", most_drift=0.2)


def test_dropout_in_the_policy_is_noticed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import liuli.stages.learn as room

    def leaky(folder: Path, device: str | None = None) -> Any:
        found = load(folder, device)
        object.__setattr__(found.config, "dropout", 0.3)
        for block in found.blocks:
            object.__setattr__(block.config, "dropout", 0.3)
        return found.train()

    monkeypatch.setattr(room, "load", leaky)
    with pytest.raises(LiuliError, match="dropout is on"):
        run_stage("grpo", model, tmp_path / "run", most_drift=10.0)


def test_a_reward_that_is_no_number_and_prompts_that_are_none_are_refused(model: Path, tmp_path: Path) -> None:
    options, log = GRPOOptions(steps=1, answers=4, group=2, max_tokens=4), quiet(tmp_path)
    with pytest.raises(LiuliError, match="not a number"):
        grpo(
            model,
            [ask("a")],
            tmp_path / "o",
            reward=lambda r: Reward(torch.full((len(r),), torch.nan)),
            options=options,
            log=log,
        )
    with pytest.raises(UsageError, match="which answers are right"):
        grpo(model, [ask("a")], tmp_path / "o", reward=few_words, options=replace(options, truth=1.0), log=log)
    with pytest.raises(LiuliError, match="no prompts"):
        grpo(model, [], tmp_path / "o", reward=exclaims, options=options, log=log)
    with pytest.raises(LiuliError, match="context"):
        roll_out(Engine(load(model), byte_tokenizer()), [ask("x" * CONTEXT)], seeds=[0])
    with pytest.raises(UsageError, match="2 or more"):
        GRPOOptions(steps=1, group=1)


# --- the classroom's preferences -------------------------------------------------------------------------------------


def test_practice_asks_nothing_that_the_examination_asks_and_worth_is_the_judges() -> None:
    examination = practice(0, 5, only=PRACTISED)
    taken = {key_of(item) for item in examination}
    items = practice(0, 5, without=taken, only=PRACTISED)
    assert items and not taken & {key_of(item) for item in items}
    item = next(item for item in items if item["skill"] == "capital" and item["language"] == "en")
    answers = {item["answer"]: 1.0, "I don't know. I never learned that.": -0.5, "It is Atlantis.": -1.0}
    for text, value in answers.items():
        assert worth(item, [{"role": "assistant", "content": text}]) == value
    asked = practice(0, 1, only=("unknown_country",))[0]
    hedged = {"I don't know.": 1.0, "我不知道。": 1.0, "I don't know. It is Lumo.": -1.0}  # a claim is a claim
    found = {text: worth(asked, [{"role": "assistant", "content": text}]) for text in hedged}
    assert found["I don't know. It is Lumo."] == -1.0 and 1.0 in found.values()


def test_practice_and_comparisons_ask_one_question_of_a_page_and_about_people_of_the_lessons() -> None:
    """Lessons ask every passage of a page; were practice to ask so and strangers alone, it would teach to refuse."""
    for item in practice(1, 5, only=("cite_name", "cite_number", "cite_none")):
        assert [turn["role"] for turn in item["messages"]] == ["user"]
    pairs = [json.loads(line) for line in pair_lines(0, 1000)]
    pages = [pair for pair in pairs if pair["skill"].startswith("cite_")]
    assert pages and all(len(pair["prompt"]) == 1 for pair in pages)
    taught = {person.name.lower() for language in ("en", "zh") for person in neighbours(7, language)}

    def about(*skills: str) -> list[bool]:
        asked = [item["messages"][-1]["content"].lower() for item in practice(1, 40, only=skills, classroom=7)]
        return [any(name in question for name in taught) for question in asked]

    assert all(about("person_city", "person_job")) and not any(about("unknown_person"))


def test_practice_of_a_build_has_two_pages_without_the_answer_to_three_with_it_and_no_stories(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text("")
    asked = Counter(item["skill"] for item in practice_items(tmp_path, 0))
    assert 2 * (asked["cite_name"] + asked["cite_number"]) == 3 * asked["cite_none"] > 0
    assert not any(skill.startswith("story") for skill in asked)


def test_the_labeller_chooses_as_often_as_its_odds_say() -> None:
    rows = [json.loads(line) for line in pair_lines(0, 6000)]
    said = [row for row in rows if row["kind"] == "not known"]
    likely = prefers(1.0, -0.5)
    # the share of comparisons that went the likely way, within four standard errors
    share = sum(row["odds"] > 0.5 for row in said) / len(said)
    assert abs(share - likely) < 4 * (likely * (1 - likely) / len(said)) ** 0.5
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert list(pair_lines(0, 600)) == list(pair_lines(0, 600)) != list(pair_lines(1, 600))
