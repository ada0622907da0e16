"""The engine against transformers' `generate`: the same random folder, greedy, token for token, on every path."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from liuli.engine import Engine, Sampling
from liuli.engine.cache import PrefixCache
from liuli.engine.engine import barred
from liuli.engine.scheduler import Scheduler
from liuli.model import load
from liuli.text.tokenizer import SMALLEST
from tests.engine.conftest import byte_tokenizer
from tests.engine.test_scheduler import ANSWER, CONTEXT, check_invariants

transformers = pytest.importorskip("transformers")
Case = tuple[list[int], list[int]]


@pytest.fixture(scope="module", params=["Qwen3", "Llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, list[Case]]:
    """Our engine over a folder that transformers wrote, and prompts with what its `generate` says."""
    folder, tokenizer = tmp_path_factory.mktemp("folder"), byte_tokenizer()
    theirs = random_folder(request.param, folder)
    draw = random.Random(3)
    stems = [[0, *(draw.randrange(16, 40) for _ in range(length))] for length in (0, 16, 34, 51)]
    prompts = [stem + [draw.randrange(16, 40) for _ in range(draw.randrange(1, 24))] for stem in stems * 5]
    return Engine(load(folder), tokenizer, rows=len(prompts)), [
        (prompt, generated(theirs, prompt)) for prompt in prompts
    ]


def random_folder(kind: str, folder: Path) -> torch.nn.Module:
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=SMALLEST, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=80, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        initializer_range=0.2,
    )  # fmt: skip
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    theirs.save_pretrained(folder)
    return theirs


def generated(theirs: torch.nn.Module, prompt: list[int]) -> list[int]:
    tokenizer = byte_tokenizer()
    fed = torch.tensor([prompt])
    whole = theirs.generate(
        fed,
        attention_mask=torch.ones_like(fed),
        do_sample=False,
        max_new_tokens=ANSWER,
        eos_token_id=sorted(tokenizer.stops),
        pad_token_id=tokenizer.pad,
        suppress_tokens=barred(tokenizer, SMALLEST),
    )
    return whole[0, len(prompt) :].tolist()


GREEDY = Sampling(temperature=0, max_tokens=ANSWER)


def test_alone_and_in_a_full_batch(case: tuple[Engine, list[Case]]) -> None:
    engine, cases = case
    assert len({tuple(answer) for _, answer in cases}) > 10  # a model that repeats itself would prove little
    for prompt, answer in cases[:5]:
        assert [token.id for token in engine.stream(prompt, GREEDY)] == answer
    together = engine.generate([prompt for prompt, _ in cases], GREEDY)
    assert [found.ids for found in together] == [answer for _, answer in cases]


@pytest.mark.parametrize(
    ("path", "blocks", "chunk"), [("shelf", 400, 4096), ("evicting shelf", 3, 4096), ("chunks", 0, 5), ("both", 6, 5)]
)
def test_with_prefixes_chunks_and_evictions(
    path: str, blocks: int, chunk: int, case: tuple[Engine, list[Case]]
) -> None:
    engine, cases = case
    block = PrefixCache.bytes_per_block(Scheduler(engine, 1, CONTEXT).cache)
    scheduler = Scheduler(engine, 3, CONTEXT, prefix_bytes=blocks * block, chunk=chunk)
    draw = random.Random(path)
    asked = [(engine.request(prompt, GREEDY), answer) for prompt, answer in cases * 2]
    coming = list(asked)
    while coming or len(scheduler):
        if coming:
            scheduler.submit(coming.pop(0)[0])
        if scheduler.running and draw.random() < 0.2:  # a row is thrown out and comes back
            scheduler.preempt(draw.choice(scheduler.running))
        scheduler.step()
        check_invariants(scheduler)
    assert [[token.id for token in request.tokens] for request, _ in asked] == [answer for _, answer in asked]
    assert scheduler.stats.preempted > 10
    assert (scheduler.stats.reused > 0) == (blocks > 0)
