"""Two processes learn what one process learns: the same gradients, weights and figures, whoever holds which rows."""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch import nn

from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.model.scalar import ScalarModel
from liuli.stages.experience import Experience, Step, select, update
from liuli.stages.ppo import PPOOptions, ppo_experience
from liuli.stages.rollout import ModelActor, Rollouts, parts, score_all
from liuli.train import Optimizer, OptimizerOptions, TensorBatch, next_token
from liuli.train.parallel import (
    Shared,
    from_each,
    from_first,
    gathered,
    join,
    leave,
    load_gathered,
    own_rows,
    sharded,
    state_of,
    summed,
    whole,
)
from tests.engine.conftest import make_model

ADAM = OptimizerOptions(kind="adamw", adam_lr=1e-3, adam_eps=1e-5)
# 7 answers, scored in pieces of 2, 2, 2 and 1 rows: the last leaves a rank without any
LENGTHS = (30, 26, 24, 20, 9, 7, 6)
STEP = Step(epochs=3, value_weight=0.1, leash=0.05, micro_tokens=31)
CASES = ("qwen3 alone", "qwen3 and a head", "racer and a model", "racer and text")
TEXT = torch.arange(16, 16 + 4 * 20).view(4, 20)


def make_actor(case: str) -> tuple[ModelActor, nn.ModuleDict]:
    """A tiny policy with its critic, the same in every process."""
    model = make_model(case.split()[0])
    critic: nn.Module | None = None
    if case.endswith("head"):
        torch.manual_seed(1)
        critic = nn.Linear(model.config.width, 1)
    if case.endswith("model"):
        critic = ScalarModel(make_model("qwen3", seed=2))
    actor = ModelActor(model, critic=critic)
    return actor, actor.learning


def make_experience(actor: ModelActor) -> Experience:
    """A round whose answers differ in length and in how many of their tokens were drawn."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(16, 272, (len(lengths), int(lengths.max())), generator=generator)
    places = torch.arange(tokens.shape[1])[None, :]
    mask = (places >= 3) & (places < lengths[:, None])
    ended = torch.ones(len(lengths), dtype=torch.bool)
    rollouts = Rollouts(tokens, mask, torch.zeros(tokens.shape), lengths, ended, torch.arange(len(lengths)))
    old = score_all(actor, rollouts, STEP.micro_tokens)
    reference = old.log_probs_BT + 0.1 * torch.randn(tokens.shape, generator=generator) * mask
    rewards = torch.randn(len(lengths), generator=generator)
    return ppo_experience(rollouts, old, reference, rewards, 0.1, PPOOptions(steps=1))


class Recording:
    """An optimizer that keeps the gradients of its first step."""

    def __init__(self, optimizer: Optimizer, module: nn.Module) -> None:
        self.optimizer, self.module = optimizer, module
        self.gradients: dict[str, torch.Tensor] = {}

    def step(self, scale: float) -> None:
        if not self.gradients:
            found = {name: weight.grad for name, weight in self.module.named_parameters()}
            self.gradients = gathered({name: grad for name, grad in found.items() if grad is not None})
        self.optimizer.step(scale)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


def text_loss(model: Transformer, rows_BT: torch.Tensor) -> torch.Tensor:
    """PPO-ptx: the mean of the pretraining loss."""
    batch = TensorBatch(rows_BT[:, :-1], rows_BT[:, 1:], torch.ones(rows_BT[:, 1:].shape))
    return 0.1 * next_token(model, batch) / rows_BT[:, 1:].numel()


def learn(
    actor: Any, module: nn.ModuleDict, optimizer: Optimizer, e: Experience, step: Step = STEP, text: Any = None
) -> dict[str, Any]:
    """Three steps of PPO: figures, the gradients of the first step, the weights after the last, and what they say."""
    before = {name: weight.clone() for name, weight in gathered(module.state_dict()).items()}
    kept = Recording(optimizer, module)
    extra = None if text is None else lambda: text_loss(module["model"], text)
    figures = update(actor, kept, e, step, extra=extra)  # type: ignore[arg-type]
    scores = score_all(actor, e.rollouts, step.micro_tokens)
    after = gathered(module.state_dict())
    return {"figures": figures, "gradients": kept.gradients, "before": before, "weights": after, "scores": scores}


def in_one_process(case: str) -> dict[str, Any]:
    actor, module = make_actor(case)
    text = TEXT if case.endswith("text") else None
    return learn(actor, module, Optimizer(module, ADAM), make_experience(actor), text=text)


# --- what the two processes do ---------------------------------------------------------------------------------------


def as_it_should(case: str) -> dict[str, Any]:
    actor, module = make_actor(case)
    e = make_experience(actor)
    own_text = TEXT[torch.distributed.get_rank() :: 2] if case.endswith("text") else None
    optimizer = sharded(module, ADAM)
    return learn(Shared(actor), module, optimizer, e, text=own_text)


def without_synchronisation(case: str) -> dict[str, Any]:
    actor, module = make_actor(case)
    return learn(Shared(actor), module, Optimizer(module, ADAM), make_experience(actor))


def mean_of_means(case: str) -> dict[str, Any]:
    """Each rank takes its rows for the whole round, and FSDP2 averages: what plain data parallelism does."""
    actor, module = make_actor(case)
    e = make_experience(actor)
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = select(e, own_rows(len(e.rollouts), rank, ranks))
    return learn(actor, module, sharded(module, ADAM), own, Step(epochs=3, value_weight=0.1, leash=0.05))


def go_on(case: str, state: dict[str, Any] | None, spread: bool) -> dict[str, Any]:
    """Three steps, or with the state that they ended in given, the three after them; the state in the end."""
    actor, module = make_actor(case)
    e = make_experience(actor)
    optimizer = sharded(module, ADAM)
    if state is not None:
        load_gathered(module, optimizer, state)
    update(Shared(actor) if spread else actor, optimizer, e, STEP)
    return state_of(module, optimizer)


def six_steps(case: str, spread: bool) -> dict[str, Any]:
    actor, module = make_actor(case)
    e = make_experience(actor)
    optimizer = sharded(module, ADAM)
    for _ in range(2):
        update(Shared(actor) if spread else actor, optimizer, e, STEP)
    return state_of(module, optimizer)


def muon(own: slice, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two steps of Muon on some rows of text, from a state if one is given; the state in the end."""
    model = make_model("qwen3")
    optimizer = sharded(model, OptimizerOptions(matrix_decay=0.1, adam_eps=1e-5))
    if state is not None:
        load_gathered(model, optimizer, state)
    for _ in range(2):
        text_loss(model, TEXT[own]).backward()  # type: ignore[no-untyped-call]
        optimizer.step(1.0)
        optimizer.zero_grad()
    return state_of(model, optimizer)


def make_judge() -> ScalarModel:
    """A reward model of three members, whose offsets are no weights."""
    judge = ScalarModel(make_model("qwen3", seed=2), 3)
    judge.offsets_E.copy_(torch.arange(3))
    return judge


def worker(rank: int, ranks: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert join() == (rank, ranks)
    found: dict[str, Any] = {case: as_it_should(case) for case in CASES}
    found["unsynchronised"] = without_synchronisation(CASES[1])
    found["mean of means"] = mean_of_means(CASES[1])
    found["half"] = go_on(CASES[2], None, spread=True)
    found["gone on"] = go_on(CASES[2], found["half"], spread=True)
    found["all at once"] = six_steps(CASES[2], spread=True)
    own = slice(rank, None, ranks)
    found["muon"] = muon(own, muon(own))
    judge = make_judge()
    sharded(judge, ADAM)
    found["judge"] = whole(judge).state_dict()
    found["sum"] = summed(1.0, rank)
    found["made"] = from_first(lambda: f"by rank {rank}")
    found["dealt"] = from_each(5, lambda numbers: [f"{number} by rank {rank}" for number in numbers])
    try:
        from_first(failing)
    except LiuliError as error:
        found["failed"] = error.what
    try:
        from_each(2, lambda numbers: failing() if rank else [0])
    except LiuliError as error:
        found["failed in one"] = error.what
    torch.save(found, Path(folder) / f"{rank}.pt")
    leave()


def failing() -> str:
    raise LiuliError("no server")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    processes.spawn(worker, args=(2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# --- promises --------------------------------------------------------------------------------------------------------


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """How far all numbers together are from what they should be, relative (L2)."""
    assert found.keys() == expected.keys()
    whole, right = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    return float((whole - right).norm() / right.norm())


def changes(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What training changed."""
    return {name: found["weights"][name] - x for name, x in found["before"].items()}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(ranks: list[dict[str, Any]], case: str) -> None:
    expected = in_one_process(case)
    for found in (rank[case] for rank in ranks):
        # float32 sums in another order: a few units in the last place
        assert apart(found["gradients"], expected["gradients"]) < 1e-6
        assert max(apart({"": found["gradients"][name]}, {"": x}) for name, x in expected["gradients"].items()) < 1e-5
        assert apart(found["weights"], expected["weights"]) < 1e-6
        assert apart(changes(found), changes(expected)) < 1e-5  # Adam divides by gradients that are almost nothing
        assert found["figures"] == pytest.approx(expected["figures"], rel=1e-5, abs=1e-5)
        assert found["figures"]["steps"] == 3
        for values, right in zip(found["scores"], expected["scores"], strict=True):
            torch.testing.assert_close(values, right, rtol=1e-5, atol=1e-5)
        make_actor(case)[1].load_state_dict(found["weights"])  # whole, under the names that one process knows
    for first, second in zip(ranks[0][case]["scores"], ranks[1][case]["scores"], strict=True):
        assert torch.equal(first, second)


def test_the_two_processes_held_different_numbers_of_tokens_and_one_had_none_of_a_piece() -> None:
    rollouts = make_experience(make_actor(CASES[0])[0]).rollouts
    pieces = parts(rollouts.lengths_B, STEP.micro_tokens)
    assert [len(piece) for piece in pieces] == [2, 2, 2, 1]
    tokens = [
        sum(int(rollouts.mask_BT[piece[own_rows(len(piece), rank, 2)]].sum()) for piece in pieces) for rank in (0, 1)
    ]
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("wrong", ["unsynchronised", "mean of means"])
def test_the_usual_mistakes_are_noticed(ranks: list[dict[str, Any]], wrong: str) -> None:
    expected = in_one_process(CASES[1])
    for found in (rank[wrong] for rank in ranks):
        assert apart(found["gradients"], expected["gradients"]) > 1e-3
        assert apart(changes(found), changes(expected)) > 1e-3


def test_what_the_first_process_makes_or_fails_at_all_processes_get(ranks: list[dict[str, Any]]) -> None:
    assert [rank["made"] for rank in ranks] == ["by rank 0"] * 2
    assert [rank["sum"] for rank in ranks] == [[2.0, 1.0]] * 2
    assert [rank["failed"] for rank in ranks] == ["no server"] * 2
    assert [rank["failed in one"] for rank in ranks] == ["no server"] * 2
    assert [rank["dealt"] for rank in ranks] == [[f"{number} by rank {number % 2}" for number in range(5)]] * 2


def test_a_run_goes_on_bit_for_bit_and_with_another_number_of_processes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        flat, expected = (flattened(rank[name]) for name in ("gone on", "all at once"))
        assert flat.keys() == expected.keys() and all(torch.equal(flat[name], x) for name, x in expected.items())
    alone = go_on(CASES[2], ranks[0]["half"], spread=False)  # begun by two, ended by one
    assert apart(alone["model"], ranks[0]["gone on"]["model"]) < 1e-6
    assert apart(alone["model"], ranks[0]["half"]["model"]) > 1e-4


def test_a_reward_model_in_shards_is_put_together_as_any_model_is(ranks: list[dict[str, Any]]) -> None:
    expected = make_judge().state_dict()
    for found in (rank["judge"] for rank in ranks):
        assert found.keys() == expected.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


def flattened(state: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state."""
    if isinstance(state, dict):
        return {key: x for part in state for key, x in flattened(state[part], f"{name}/{part}").items()}
    return {name: state} if isinstance(state, torch.Tensor) else {}


@pytest.mark.parametrize(("count", "ranks"), [(7, 2), (1, 4), (0, 2), (12, 3)])
def test_each_row_has_one_rank(count: int, ranks: int) -> None:
    dealt = [own_rows(count, rank, ranks).tolist() for rank in range(ranks)]
    assert sorted(itertools.chain(*dealt)) == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_muon_moves_shards_as_whole_matrices_and_goes_on_from_what_was_kept(
    ranks: list[dict[str, Any]],
) -> None:
    every = slice(None)
    expected, begun = muon(every, muon(every)), make_model("qwen3").state_dict()
    matrices = [name for name, x in begun.items() if "blocks" in name and x.dim() == 2]
    for rank in ranks:
        found = rank["muon"]["model"]
        for name in matrices:
            right = expected["model"][name] - begun[name]
            assert apart({"": found[name] - begun[name]}, {"": right}) < 1e-4 and right.norm() > 0.05
        kept, right = rank["muon"]["optimizer"]["muon"], expected["optimizer"]["muon"]
        assert kept.keys() == right.keys()
        assert all(apart(kept[key], right[key]) < 1e-4 for key in right)


def test_without_torchrun_there_is_one_process_that_makes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == (0, 1)
    assert from_first(len, "abc") == 3 and from_each(3, list) == [0, 1, 2]
