"""What `ppo` itself adds to the functions: the critic, the pretraining loss, the steering of the leash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from liuli.files import folder_hash, read_lines
from liuli.model import load
from liuli.model.scalar import load_scalar
from liuli.stages import learn
from liuli.stages.ppo import PPOOptions, ppo
from liuli.stages.reward import RewardOptions, reward
from liuli.text import Loader, pack_documents
from liuli.text.tokenizer import SMALLEST
from liuli.train import measure_machine
from liuli.train.preference import combine
from liuli.train.trace import read_trace
from tests.engine.conftest import byte_tokenizer
from tests.stages.conftest import PAIRS, ask, comparisons, quiet

SHORT = PPOOptions(steps=3, answers=6, epochs=2, max_tokens=6, no_end=0.0, trace_every=1, lr=1e-3)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in float32, so that what is computed twice is the same."""
    monkeypatch.setattr("liuli.stages.training.measure_machine", lambda: replace(measure_machine(), dtype="float32"))
    monkeypatch.setattr("liuli.stages.reward.measure_machine", lambda: replace(measure_machine(), dtype="float32"))


@pytest.fixture
def judge(model: Path, tmp_path: Path, exact: None) -> Path:
    options = RewardOptions(members=2, epochs=4)
    reward(model, comparisons(), tmp_path / "judge", options=options, log=quiet(tmp_path / "log"))
    return tmp_path / "judge"


def run(model: Path, judge: Path, folder: Path, options: PPOOptions, **more: Any) -> None:
    ppo(model, judge, [ask(f"say {n}") for n in range(6)], folder / "out", options=options, log=quiet(folder), **more)


def read_off(judge: Path, tokens: list[int]) -> torch.Tensor:
    """What each member says after each token, (T, E)."""
    with torch.no_grad():
        numbers: torch.Tensor = load_scalar(judge)(torch.tensor([tokens]))[0]
    return numbers


def test_the_reward_model_as_critic_begins_with_its_own_opinion_and_learns_while_the_judge_stays(
    model: Path, judge: Path, tmp_path: Path
) -> None:
    before = folder_hash(judge)
    run(model, judge, tmp_path / "run", replace(SHORT, critic="reward", lr=1e-2))
    moved = []
    for step in (1, 3):
        for b in range(6):
            trace = read_trace(tmp_path / "run", "out", step, b)
            tokens = trace["tokens"]
            opinion_TE = read_off(judge, tokens["token"])
            score = combine(opinion_TE[-1][:, None], "cautious")
            assert trace["sequences"]["score"] == pytest.approx(score.tolist(), abs=1e-4)  # the judge never learns
            drawn = [t for t, own in enumerate(tokens["drawn"]) if own]
            gaps = [abs(tokens["value"][t] - float(opinion_TE[t - 1, 0])) for t in drawn]
            moved.append(max(gaps))
    assert max(moved[:6]) < 1e-4 < min(moved[6:])
    assert folder_hash(judge) == before


def test_a_head_as_critic_begins_at_nothing(model: Path, judge: Path, tmp_path: Path) -> None:
    run(model, judge, tmp_path / "run", SHORT)
    first, last = (read_trace(tmp_path / "run", "out", step)["tokens"]["value"] for step in (1, 3))
    assert {value for value in first if value is not None} == {0.0}
    assert all(value != 0.0 for value in last if value is not None)


def test_the_pretraining_loss_is_its_weight_times_the_mean_over_the_tokens_of_the_next_texts(
    model: Path, judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, policy = byte_tokenizer(), load(model)
    texts = [tokenizer.encode(pair.prompt[0].content + " is a question.") for pair in PAIRS]
    rows = pack_documents(texts, 32, tmp_path / "rows", vocab_size=SMALLEST)
    found: list[torch.Tensor] = []
    kept = learn.update

    def noted(actor: Any, *rest: Any, extra: Callable[[], torch.Tensor], **more: Any) -> Any:
        def once() -> torch.Tensor:
            loss = extra()
            if not found:
                found.extend([loss.detach(), *torch.autograd.grad(loss, actor.model.parameters(), retain_graph=True)])
            return loss

        return kept(actor, *rest, extra=once, **more)

    # nothing is won or lost: what the weights move by is the texts'
    monkeypatch.setattr("liuli.stages.reward.score_answers", lambda judge, r, *rest: (torch.zeros(len(r)), None))
    monkeypatch.setattr(learn, "update", noted)
    options = replace(SHORT, ptx=0.7, beta=0.0)
    run(model, judge, tmp_path / "run", options, ptx_rows=rows)

    def mean_loss(policy: torch.nn.Module) -> torch.Tensor:
        batch = next(Loader(rows, 8, options.seed))
        tokens, targets = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.targets_BT)
        logits = policy(tokens, documents_BT=(tokens == tokenizer.bos).cumsum(1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    loss = 0.7 * mean_loss(policy)
    torch.testing.assert_close(found[0], loss.detach(), rtol=1e-5, atol=0)
    wanted = torch.autograd.grad(loss, list(policy.parameters()))
    torch.testing.assert_close(found[1:], list(wanted), rtol=1e-3, atol=1e-5)
    assert float(mean_loss(load(tmp_path / "run" / "out")).detach()) < float(mean_loss(policy).detach()) - 0.5


def test_the_leash_of_each_round_is_steered_by_the_divergence_of_the_one_before(
    model: Path, judge: Path, tmp_path: Path
) -> None:
    run(model, judge, tmp_path / "run", replace(SHORT, steps=4, kl_target=0.02, kl_horizon=20.0, lr=1e-2))
    rounds = [line for line in read_lines(tmp_path / "run" / "log.jsonl") if "beta" in line]
    assert len(rounds) == 4 and rounds[0]["beta"] == SHORT.beta
    errors = [min(0.2, max(-0.2, line["kl"] / 0.02 - 1)) for line in rounds]
    for error, line, after in zip(errors, rounds, rounds[1:], strict=False):
        assert after["beta"] == pytest.approx(line["beta"] * (1 + error * 6 / 20), rel=1e-9)
    assert len(set(errors[:3])) > 1
