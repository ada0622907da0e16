"""The loop's promises: gradients do not depend on how a batch is cut, bad steps change nothing, the clock is kept."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from liuli.errors import LiuliError
from liuli.model import Transformer, qwen3, racer
from liuli.text import Batch
from liuli.train import (
    LoopOptions,
    Machine,
    Optimizer,
    OptimizerOptions,
    Pace,
    RunLog,
    StageState,
    TensorBatch,
    fit,
    next_target,
    next_token,
    schedule,
)
from liuli.train.checkpoint import load_checkpoint, save_checkpoint
from liuli.train.loop import Training
from liuli.train.optimizer import orthogonalise

CONFIG = qwen3(60, 32, 2, context=16)
MACHINE = Machine("cpu", "test", 1, "float32", 1e9, 1e9, 0, False)


class Deal:
    """Rows of counting tokens; row lengths of targets differ, as in fine-tuning."""

    def __init__(self, rows=8, position=0, targets=None):
        self.rows, self.count, self.position, self.targets = SimpleNamespace(T=16), rows, position, targets

    def __next__(self):
        random = np.random.default_rng(self.position)
        tokens = random.integers(0, 60, (self.count, 17))
        weights = (random.random((self.count, 16)) < 0.5).astype(np.float32)
        weights[0] = 1
        self.position += 1
        return Batch(tokens[:, :-1], tokens[:, 1:], weights, self.position)


def training(options=LoopOptions(), steps=10, seed=0, kind="muon", rows=8):
    torch.manual_seed(seed)
    model = Transformer(CONFIG)
    optimizer = Optimizer(model, OptimizerOptions(kind=kind))
    return Training(model, optimizer, Deal(rows), next_token, Pace(steps=steps), options, MACHINE, bos=None)


def gradients(model, batch, micro):
    """Of the loss as the loop normalises it: by the target tokens of the whole batch."""
    model.zero_grad()
    total = batch.weights_BT.sum()
    for start in range(0, len(batch.tokens_BT), micro):
        part = [torch.from_numpy(value[start : start + micro]) for value in batch[:3]]
        (next_token(model, TensorBatch(*part)) / float(total)).backward()
    return [weight.grad.clone() for weight in model.parameters()]


def as_tuple(batch):
    class Indexable:
        tokens_BT, targets_BT, weights_BT = batch.tokens_BT, batch.targets_BT, batch.weights_BT

        def __getitem__(self, item):
            return (self.tokens_BT, self.targets_BT, self.weights_BT)[item]

    return Indexable()


def test_a_batch_cut_in_micro_batches_has_the_gradient_of_the_whole():
    model, batch = Transformer(CONFIG), as_tuple(next(Deal()))
    whole, cut = gradients(model, batch, 8), gradients(model, batch, 2)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    # the well-known mistake, a mean of each micro-batch's mean, is far off: the test can tell
    model.zero_grad()
    for start in range(0, 8, 2):
        part = [torch.from_numpy(value[start : start + 2]) for value in batch[:3]]
        (next_token(model, TensorBatch(*part)) / float(part[2].sum()) / 4).backward()
    wrong = torch.cat([weight.grad.flatten() for weight in model.parameters()])
    right = torch.cat([grad.flatten() for grad in whole])
    assert (wrong - right).norm() / right.norm() > 0.05


class Bigrams(torch.nn.Module):
    """The smallest language model, in float64: a row of logits for each token."""

    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(60, 60, dtype=torch.float64))


def surprise(model, batch):
    log_probs = torch.log_softmax(model.logits, 1)[batch.tokens_BT, batch.targets_BT]
    return -(batch.weights_BT * log_probs).sum()


@pytest.mark.parametrize("micro_rows", [8, 3, 1])
def test_the_loops_gradient_is_softmax_less_target_over_all_targets_of_the_step(micro_rows, monkeypatch):
    model, steps = Bigrams(), []
    monkeypatch.setattr("liuli.train.loop.grad_norm", lambda model: torch.ones(()))  # it takes no float64
    keep = SimpleNamespace(step=lambda scale: steps.append(model.logits.grad.clone()), zero_grad=model.zero_grad)
    run = Training(model, keep, Deal(), surprise, Pace(steps=1), LoopOptions(micro_rows=micro_rows), MACHINE, bos=None)
    run.take_step()
    batch = as_tuple(run.last_batch)
    tokens, targets, weights = (torch.from_numpy(batch[n]).flatten() for n in range(3))
    slopes_NV = torch.softmax(model.logits.detach(), 1)[tokens] - torch.nn.functional.one_hot(targets, 60)
    slopes_NV *= weights[:, None].double() / weights.double().sum()
    wanted = torch.zeros(60, 60, dtype=torch.float64).index_add(0, tokens, slopes_NV)
    torch.testing.assert_close(steps[0], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kept", [0.0, 0.4, 1.0])
def test_a_head_on_the_targets_alone_gives_the_same_loss_and_gradient(kept):
    model, dealt = Transformer(CONFIG), next(Deal())
    tokens, targets = torch.from_numpy(dealt.tokens_BT), torch.from_numpy(dealt.targets_BT)
    batch = TensorBatch(tokens, targets, (torch.rand(tokens.shape) < kept).float())
    made = []
    for objective in (next_token, next_target):
        model.zero_grad()
        loss = objective(model, batch)
        loss.backward()
        made.append([loss.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_micro_batches_train_to_the_same_weights():
    whole, cut = training(), training(LoopOptions(micro_rows=2))
    for run in (whole, cut):
        for _ in range(3):
            run.take_step()
            run.pace.advance(run.step)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # Muon's rounding of a near-equal gradient


def test_training_learns_and_the_result_says_so(tmp_path):
    run = training(steps=60)
    log = RunLog(tmp_path, [StageState("s", "s")], quiet=True, tensorboard=False)
    log.begin("s")

    class Same(Deal):
        def __next__(self):
            self.position = 0
            return super().__next__()

    result = fit(
        run.model, run.optimizer, Same(), next_token, Pace(steps=60), log=log, machine=MACHINE, options=LoopOptions()
    )
    assert result.steps == 60 and result.tokens == 60 * 8 * 16 and result.loss < 0.5 * math.log(60)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    run = training()
    run.take_step()
    before = [weight.clone() for weight in run.model.parameters()]
    good, run.objective = run.objective, lambda model, batch: next_token(model, batch) * bad
    run.take_step()
    assert run.skipped == 1 and run.loader.position == 2
    for a, b in zip(before, run.model.parameters(), strict=True):
        assert torch.equal(a, b)
    run.objective = good
    run.take_step()
    assert run.bad_in_a_row == 0 and any(
        not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True)
    )


def test_three_bad_steps_go_back_to_the_last_checkpoint_and_leave_the_data_behind(tmp_path):
    run = training(steps=8)
    run.take_step()
    save_checkpoint(tmp_path / "c", 1, run.state())
    saved = [weight.detach().clone() for weight in run.model.parameters()]
    calls = {"n": 0}

    def sometimes(model, batch):
        calls["n"] += 1
        return next_token(model, batch) * (math.nan if 2 <= calls["n"] <= 4 else 1.0)

    log = RunLog(tmp_path, [StageState("s", "s")], quiet=True, tensorboard=False)
    log.begin("s")
    seen = []
    result = fit(
        run.model,
        run.optimizer,
        run.loader,
        sometimes,
        Pace(steps=8),
        log=log,
        machine=MACHINE,
        options=LoopOptions(save_every_s=1e9, snapshot_every_s=0.0),
        checkpoints=tmp_path / "c",
        on_snapshot=lambda step: seen.append((step, [w.detach().clone() for w in run.model.parameters()])),
    )
    after_roll_back = dict(seen)[5]
    assert result.skipped == 3 and all(torch.equal(a, b) for a, b in zip(saved, after_roll_back, strict=True))
    assert '"rolled back"' in (tmp_path / "log.jsonl").read_text()


def fit_to_nothing(run, folder, steps, checkpoints=None, **options):
    """A whole run whose loss is not finite at any step."""
    log = RunLog(folder, [StageState("s", "s")], quiet=True, tensorboard=False)
    log.begin("s")
    fit(
        run.model,
        run.optimizer,
        run.loader,
        lambda model, batch: next_token(model, batch) * math.nan,
        Pace(steps=steps),
        log=log,
        machine=MACHINE,
        options=LoopOptions(**options),
        checkpoints=checkpoints,
    )


def test_a_loss_that_is_never_finite_ends_in_a_clear_error(tmp_path):
    with pytest.raises(LiuliError, match="not finite"):
        fit_to_nothing(training(), tmp_path, 9)


@pytest.mark.parametrize("every", [1, 1000])
def test_a_loss_that_is_not_finite_from_some_step_on_ends_in_a_clear_error_also_with_checkpoints(tmp_path, every):
    """Also where checkpoints are so frequent that each roll-back could be followed by one."""
    run = training()
    run.take_step()
    save_checkpoint(tmp_path / "c", 1, run.state())
    with pytest.raises(LiuliError, match="going back to step 1 does not help") as error:
        fit_to_nothing(run, tmp_path, 1000, tmp_path / "c", save_every_steps=every)
    assert "matrix_lr" in error.value.fix and run.loader.position <= 20
    assert (tmp_path / "log.jsonl").read_text().count('"rolled back"') == 2


def test_schedule_rises_stays_and_falls_to_its_floor():
    values = [schedule(p / 1000) for p in range(1001)]
    assert values[0] < 0.1 and values[20] == 1.0 and values[399] == 1.0 and values[-1] == pytest.approx(0.05)
    assert all(a >= b for a, b in itertools.pairwise(values[400:]))


def test_a_clock_that_changes_speed_still_ends_on_time_with_progress_one():
    now = {"t": 0.0}
    pace, step = Pace(seconds=100.0, clock=lambda: now["t"]), 0
    while pace.progress < 1.0:
        step += 1
        now["t"] += 5.0 if step == 1 else (0.5 if step < 60 else 1.0)  # compiling, then a busier machine
        pace.advance(step)
    assert 92 < now["t"] < 108


def test_decisions_of_the_clock_are_followed_again_after_a_kill(tmp_path):
    def run(clock_step, stop=None, state=None, start=0):
        now = {"t": 0.0}
        pace = Pace(seconds=20.0, journal=tmp_path / "pace.jsonl", clock=lambda: now["t"])
        if state:
            pace.load_state(state)
        progress, step = [], start
        while pace.progress < 1.0 and step != stop:
            step += 1
            now["t"] += clock_step
            progress.append(pace.advance(step))
        return progress, pace.state()

    first, _ = run(0.25, stop=50)
    (tmp_path / "kept").write_bytes((tmp_path / "pace.jsonl").read_bytes())
    (tmp_path / "pace.jsonl").unlink()
    again, state = run(0.25, stop=30)
    (tmp_path / "pace.jsonl").write_bytes((tmp_path / "kept").read_bytes())
    resumed, _ = run(0.7, stop=50, state=state, start=30)  # another speed, the same decisions
    assert again == first[:30] and resumed == first[30:50]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_orthogonalise_finds_the_singular_vectors(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonalise(matrices)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.8 and values.max() < 1.2
    cosine = (made * (U @ Vh)).sum((-2, -1)) / made.norm(dim=(-2, -1)) / (U @ Vh).norm(dim=(-2, -1))
    assert cosine.min() > 0.98


@pytest.mark.parametrize("make", [qwen3, racer])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_weight_is_updated_by_one_rule_and_state_survives(make, kind):
    def fresh():
        torch.manual_seed(0)
        model = Transformer(make(60, 32, 2, context=16))
        return model, Optimizer(model, OptimizerOptions(kind=kind))

    def steps(model, optimizer, count, seed):
        for number in range(count):
            torch.manual_seed(seed + number)
            tokens = torch.randint(0, 60, (4, 16))
            next_token(model, TensorBatch(tokens, tokens.flip(1), torch.ones(4, 16))).backward()
            optimizer.step(1.0)
            optimizer.zero_grad()

    model, optimizer = fresh()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    steps(model, optimizer, 3, 0)
    still = [name for name, weight in model.named_parameters() if torch.equal(before[name], weight)]
    assert still == []
    other, second = fresh()
    other.load_state_dict(model.state_dict())
    second.load_state(optimizer.state())
    steps(model, optimizer, 2, 9)
    steps(other, second, 2, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_state_from_a_checkpoint_goes_to_the_device_of_the_weights():
    run = training()
    run.take_step()
    state = run.optimizer.state()
    run.optimizer.shapes = {shape: [w.to("meta") for w in weights] for shape, weights in run.optimizer.shapes.items()}
    run.optimizer.load_state(state)
    moved = [tensor.device.type for state in run.optimizer.muon_state.values() for tensor in state.values()]
    assert moved and set(moved) == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a CUDA GPU")
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_with_the_same_dropout(tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = Transformer(qwen3(60, 32, 2, context=16, dropout=0.3)).to("cuda")
        machine = Machine("cuda", "test", 1, "float32", 1e9, 1e9, 0, False)
        optimizer = Optimizer(model, OptimizerOptions())
        return Training(model, optimizer, Deal(), next_token, Pace(steps=9), LoopOptions(), machine, bos=None)

    run, other = fresh(), fresh()
    run.take_step()
    save_checkpoint(tmp_path, 1, run.state())
    loss = run.take_step()[0]
    torch.cuda.manual_seed(99)
    other.load_state(load_checkpoint(tmp_path)[1])
    assert other.take_step()[0] == pytest.approx(loss, rel=1e-5)
    assert {t.device.type for s in other.optimizer.muon_state.values() for t in s.values()} == {"cuda"}
