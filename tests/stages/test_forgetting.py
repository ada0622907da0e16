"""Tuning forgets what was learned before; rows of before, dealt beside the new ones, keep it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from liuli.errors import UsageError
from liuli.model import Transformer, qwen3
from liuli.text import Loader, Rows, pack_documents
from liuli.train import LoopOptions, Optimizer, OptimizerOptions, Pace, RunLog, StageState, fit, next_token
from liuli.train.loop import to_tensors
from liuli.train.machine import Machine

V, T = 26, 32
CPU = Machine("cpu", "cpu", 1, "float32", 1e9, 1e9, 0, False)


def chain(folder: Path, number: int, texts: int = 600, draw: int = 0) -> Rows:
    """Texts of a random Markov chain of its own, packed. Each begins with the chain's mark, as chats do with a role:
    which chain it is needs no guess."""
    states, mark = 23, 24 + number % 2
    table = np.random.default_rng(number).dirichlet(np.full(states, 0.2), V).cumsum(1)
    chance = np.random.default_rng([number, draw])
    tokens = np.zeros((texts, T + 1), np.int64)
    tokens[:, 1] = mark
    for t in range(2, T + 1):
        higher = (chance.random((texts, 1)) > table[tokens[:, t - 1]]).sum(1)
        tokens[:, t] = 1 + np.minimum(higher, states - 1)
    return pack_documents(tokens.tolist(), T, folder, vocab_size=V)


def learn(model: Transformer, loader: Loader, steps: int, rate: float, folder: Path) -> None:
    log = RunLog(folder, [StageState("s", "s")], quiet=True, tensorboard=False)
    log.begin("s")
    optimizer = Optimizer(model, OptimizerOptions(kind="adamw", adam_lr=rate, embedding_lr=rate, head_lr=rate))
    fit(model, optimizer, loader, next_token, Pace(steps=steps), log=log, machine=CPU, options=LoopOptions())


@torch.no_grad()
def loss(model: Transformer, rows: Rows) -> float:
    batch = to_tensors(next(Loader(rows, 200, 99)), slice(None), "cpu", None)
    return float(next_token(model, batch) / batch.weights_BT.sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_fifth_of_replay_keeps_what_is_forgotten_without_it(seed: int, tmp_path: Path) -> None:  # posttraining 6.5
    before, after = (chain(tmp_path / f"{n}", 2 * seed + n, texts=8000) for n in (0, 1))  # none is dealt twice
    held_out = [chain(tmp_path / f"held out {n}", 2 * seed + n, texts=400, draw=1) for n in (0, 1)]
    torch.manual_seed(seed)
    model = Transformer(qwen3(V, 32, 2, context=T))
    learn(model, Loader(before, 20, seed), 200, 4e-3, tmp_path / "first")
    knew, weights = loss(model, held_out[0]), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    forgot, learned = {}, {}  # nats a token
    for share in (0.0, 0.2):
        model.load_state_dict(weights)
        learn(model, Loader(after, 20, seed, replay=before, share=share), 400, 2e-3, tmp_path / f"then{share}")
        forgot[share], learned[share] = loss(model, held_out[0]) - knew, loss(model, held_out[1])
    assert forgot[0.0] > 1.0
    assert forgot[0.2] < 0.1
    assert learned[0.2] - learned[0.0] < 0.02


def test_replayed_rows_are_dealt_in_their_share_and_order_on_any_number_of_processes(tmp_path: Path) -> None:
    main, old = chain(tmp_path / "a", 0), chain(tmp_path / "b", 1)
    whole = [next(loader) for loader in [Loader(main, 8, 5, replay=old, share=0.25)] for _ in range(3)]
    assert all(len(batch.tokens_BT) == 8 for batch in whole)
    seen = {row.tobytes() for batch in whole for row in batch.tokens_BT[6:]}
    assert seen <= {np.asarray(row[:-1], np.int64).tobytes() for row in old.tokens}
    halves = [Loader(main, 8, 5, rank=rank, world=2, replay=old, share=0.25) for rank in (0, 1)]
    for batch in whole:
        dealt = [next(half).tokens_BT for half in halves]
        assert sorted(map(bytes, np.concatenate(dealt))) == sorted(map(bytes, batch.tokens_BT))
    again = Loader(main, 8, 5, position=16, replay=old, share=0.25)
    np.testing.assert_array_equal(next(again).tokens_BT, whole[2].tokens_BT)
    with pytest.raises(UsageError, match="is 8 of them"):
        Loader(main, 8, 5, replay=old, share=1.0)
