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

V, T = 24, 32
CPU = Machine("cpu", "cpu", 1, "float32", 1e9, 1e9, 0, False)


def chain(folder: Path, seed: int) -> Rows:
    """Texts of a random Markov chain of its own, all of one first token, packed."""
    generator = np.random.default_rng(seed)
    table = generator.dirichlet(np.full(V - 1, 0.2), V)
    texts = []
    for _ in range(600):
        text = [0]
        for _ in range(T):
            text.append(1 + int(generator.choice(V - 1, p=table[text[-1]])))
        texts.append(text)
    return pack_documents(texts, T, folder, vocab_size=V)


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
def test_a_fifth_of_replay_keeps_forgetting_under_a_tenth(tmp_path: Path) -> None:
    before, after = chain(tmp_path / "a", 1), chain(tmp_path / "b", 2)
    torch.manual_seed(0)
    model = Transformer(qwen3(V, 32, 2, context=T))
    learn(model, Loader(before, 20, 0), 200, 4e-3, tmp_path / "first")
    knew, weights = loss(model, before), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {}
    for share in (0.0, 0.2):
        model.load_state_dict(weights)
        learn(model, Loader(after, 20, 0, replay=before, share=share), 400, 2e-3, tmp_path / f"then{share}")
        found[share] = (loss(model, before) - knew, loss(model, after))
    assert found[0.0][0] > 1.0  # nats a token
    assert found[0.2][0] < 0.1 * found[0.0][0]
    assert found[0.2][1] < found[0.0][1] + 0.05  # and the new is learned nearly as well


def test_replayed_rows_are_dealt_in_their_share_and_order_on_any_number_of_processes(tmp_path: Path) -> None:
    main, old = chain(tmp_path / "a", 1), chain(tmp_path / "b", 2)
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
    with pytest.raises(UsageError, match="cannot be shared"):
        Loader(main, 8, 5, replay=old, share=1.0)
