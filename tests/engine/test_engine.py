"""What the engine promises, against the plainest way to write an answer: no cache, one prompt, one token at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from liuli.engine import Engine, KeyValueCache, Sampling
from liuli.engine.decode import Decoder
from liuli.engine.quantise import KINDS, Kind, quantised_copy
from liuli.engine.speculate import lookup
from liuli.errors import LiuliError
from liuli.model import Transformer
from liuli.train import Optimizer, OptimizerOptions
from tests.engine.conftest import byte_tokenizer, make_model, scripted

TOLERANCE = 1e-4  # float32 sums in another order


def some_prompts(count: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[0, *(draw.randrange(16, 272) for _ in range(draw.randrange(longest)))] for _ in range(count)]


def plain_logits(model: Transformer, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0, -1].float()


def new_cache(model: Transformer, rows: int, dtype: torch.dtype = torch.float32) -> KeyValueCache:
    c = model.config
    return KeyValueCache(
        layers=c.layers,
        rows=rows,
        slots=c.context,
        kv_heads=c.kv_heads,
        head_size=c.head_size,
        dtype=dtype,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("preset", ["qwen3", "racer"])
def test_cached_and_uncached_logits_are_equal(preset: str) -> None:
    model = make_model(preset)
    texts = some_prompts(5, seed=3)
    begun = [max(1, len(text) // 2) for text in texts]  # rows of different lengths: read half, then go on one by one
    cache = new_cache(model, rows=7)
    padded = torch.tensor([(text[:n] + [271] * 48)[: max(begun)] for text, n in zip(texts, begun, strict=True)])
    with torch.inference_mode():
        cache.begin(0, 5, max(begun))
        read = model(padded, cache)
        for row, (text, n) in enumerate(zip(texts, begun, strict=True)):
            torch.testing.assert_close(read[row, :n], model(torch.tensor([text[:n]]))[0], atol=TOLERANCE, rtol=0)
        for step in range(10):
            lengths = [n + step for n in begun]
            texts = [(text + some_prompts(1, 30, step)[0][1:] + [99] * 48)[:48] for text in texts]
            fed, before = ([[text[n + back]] for text, n in zip(texts, lengths, strict=True)] for back in (0, -1))
            cache.follow(torch.tensor(lengths)[:, None], torch.tensor(before), lengths)
            logits = model(torch.tensor(fed), cache)
            for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
                wanted = plain_logits(model, text[: n + 1])
                torch.testing.assert_close(logits[row, 0], wanted, atol=TOLERANCE, rtol=0)


def test_greedy_answers_of_a_mixed_batch_equal_the_uncached_loop(engine: Engine) -> None:
    engine.rows = 4  # fewer rows than prompts: answers end and others take their place
    prompts = some_prompts(11)
    samplings = [Sampling(temperature=0, max_tokens=1 + 3 * number) for number in range(11)]
    for prompt, sampling, answer in zip(prompts, samplings, engine.generate(prompts, samplings), strict=True):
        tokens, logprobs = list(prompt), []
        while len(tokens) < len(prompt) + sampling.max_tokens and len(tokens) <= engine.context:
            logits = plain_logits(engine.model, tokens)
            tokens.append(int((logits + engine.ban_V).argmax()))
            logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
            if tokens[-1] in engine.stops:
                break
        assert answer.ids == tokens[len(prompt) :]
        assert answer.logprobs == pytest.approx(logprobs, abs=TOLERANCE)


def test_same_seed_gives_the_same_answer_alone_streamed_and_in_any_batch(engine: Engine) -> None:
    engine.rows = 3
    prompts = some_prompts(8, seed=1)
    samplings = [
        Sampling(temperature=0.8, seed=1, max_tokens=12),
        Sampling(temperature=1.3, top_k=5, seed=2, max_tokens=9),
        Sampling(temperature=0, max_tokens=30),
        Sampling(temperature=1.0, top_p=0.7, seed=4),
        Sampling(temperature=2.0, min_p=0.1, seed=5, max_tokens=3),
        Sampling(temperature=1.0, repetition_penalty=1.5, seed=6, max_tokens=15, alternatives=3),
        Sampling(temperature=0.0, repetition_penalty=2.0, max_tokens=8),
        Sampling(temperature=1.0, seed=1, max_tokens=20),
    ]
    together = engine.generate(prompts, samplings)
    for prompt, sampling, answer in zip(prompts, samplings, together, strict=True):
        assert engine.generate([prompt], sampling)[0].ids == answer.ids
        streamed = list(engine.stream(prompt, sampling))
        assert [token.id for token in streamed] == answer.ids
        assert "".join(token.text for token in streamed) == answer.text
        assert all(len(token.alternatives) == sampling.alternatives for token in answer.tokens)
    other = engine.generate(prompts, [Sampling(seed=9, max_tokens=12)] * 8)
    assert other[0].ids != together[0].ids


def test_alternatives_are_the_likeliest_tokens_before_any_setting() -> None:
    engine = Engine(make_model("qwen3"), byte_tokenizer())
    prompt = some_prompts(1)[0]
    token = next(engine.stream(prompt, Sampling(temperature=5, top_k=3, repetition_penalty=3, alternatives=4)))
    values, ids = plain_logits(engine.model, prompt).log_softmax(-1).topk(4)
    assert [other.id for other in token.alternatives] == ids.tolist()
    assert [other.logprob for other in token.alternatives] == pytest.approx(values.tolist(), abs=TOLERANCE)


def test_control_tokens_are_never_written_but_for_calls_thoughts_and_the_end(engine: Engine) -> None:
    with torch.no_grad():
        engine.model.head_VD.mul_(0.01)  # nearly uniform: every token would come up
    answers = engine.generate([[0]] * 64, [Sampling(seed=seed, max_tokens=40) for seed in range(64)])
    written = {token for answer in answers for token in answer.ids}
    tokenizer = engine.tokenizer
    assert written & set(range(16)) == {
        tokenizer.end,
        tokenizer.bos,
        tokenizer.think,
        tokenizer.end_think,
        tokenizer.call,
    }


@pytest.mark.parametrize("length", [1, 40, 47, 48])
def test_answer_stops_with_length_when_the_context_is_full(engine: Engine, length: int) -> None:
    engine.ban_V[list(engine.stops)] = -torch.inf
    answer = engine.generate([[0] * length], Sampling(temperature=0, max_tokens=10**9))[0]
    assert (len(answer.tokens), answer.stopped_by) == (48 - length + 1, "length")


def test_rows_that_end_cost_nothing_more() -> None:
    text = {f"{n}": [100 + n] * (3 * n) for n in range(1, 5)}
    engine = scripted(text)
    prompts = [[*engine.tokenizer.encode(key), engine.tokenizer.assistant] for key in text]
    answers = engine.generate(prompts, Sampling(temperature=0))
    assert [len(answer.tokens) for answer in answers] == [4, 7, 10, 13]
    assert [answer.stopped_by for answer in answers] == ["end"] * 4
    assert sum(engine.model.fed) == sum(len(answer.tokens) for answer in answers)


@pytest.mark.parametrize("before", ["", "think", "call"])
def test_outside_a_conversation_a_stop_string_ends_the_answer_whatever_came_before(before: str) -> None:
    tokenizer = byte_tokenizer()
    control = [getattr(tokenizer, before)] if before else []
    engine = scripted({"q": [*control, *tokenizer.encode("one STOP two")]})
    prompt = [tokenizer.bos, *tokenizer.encode("q"), tokenizer.assistant]
    said = engine.generate([prompt], Sampling(temperature=0, max_tokens=30, stop=("STOP",)))[0]
    assert (said.text, said.stopped_by) == ("one ", "stop")


def test_an_engine_of_one_row_can_be_warmed_up() -> None:
    engine = Engine(make_model("qwen3"), byte_tokenizer(), rows=1)
    engine.warm_up()
    assert len(engine.generate([[0]], Sampling(max_tokens=3, ignore_eos=True))[0].ids) == 3


@pytest.mark.parametrize("more", [0, 30])
def test_where_every_token_is_barred_the_answer_ends(more: int) -> None:
    """more: ids that only the model has."""
    tokenizer = byte_tokenizer()
    engine = Engine(make_model("qwen3", vocab_size=tokenizer.vocab_size + more), tokenizer)
    barred = Sampling(max_tokens=4, logit_bias=tuple((id, -100.0) for id in range(tokenizer.vocab_size)))
    for temperature in (0.0, 1.0):
        each = [replace(barred, temperature=temperature), Sampling(max_tokens=4, seed=1, ignore_eos=True)]
        ended, free = engine.generate([[0], [0]], each)
        assert ended.stopped_by == "end" and len(ended.ids) == 1 and len(free.ids) == 4


def test_closing_a_stream_stops_the_work() -> None:
    engine = scripted({"": [100] * 50})
    stream = engine.stream([engine.tokenizer.assistant], Sampling(temperature=0))
    assert [next(stream).id for _ in range(3)] == [100] * 3
    stream.close()
    assert len(engine.model.fed) == 3


def test_a_model_that_gives_nan_ends_the_answer_with_error() -> None:
    model = make_model("qwen3")
    torch.nn.init.constant_(model.blocks[0].feed_forward.up.weight, torch.nan)
    for temperature in (0.0, 1.0):
        answer = Engine(model, byte_tokenizer()).generate([[0]], Sampling(temperature=temperature))[0]
        assert (answer.stopped_by, answer.text) == ("error", "")


def test_dropout_is_off_while_writing_and_back_on_after() -> None:
    model = make_model("qwen3").train()
    Engine(model, byte_tokenizer()).generate([[0]], Sampling(max_tokens=2))
    assert model.training


@pytest.mark.parametrize(
    ("prompt", "says"), [([], "empty"), ([0] * 49, "49 tokens"), ([272], "vocabulary"), ([-1], "vocabulary")]
)
def test_a_prompt_the_model_cannot_read_is_named(prompt: list[int], says: str) -> None:
    engine = Engine(make_model("qwen3"), byte_tokenizer())
    with pytest.raises(LiuliError, match=says) as raised:
        engine.generate([[0], prompt], Sampling())
    assert raised.value.where == "prompt 1"


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(LiuliError, match="272 tokens, the model knows 200"):
        Engine(make_model("qwen3", vocab_size=200), byte_tokenizer())


@pytest.mark.parametrize("preset", ["qwen3", "llama", "racer"])
@pytest.mark.parametrize(("kv_heads", "compute"), [(4, None), (1, None), (2, torch.bfloat16)])
def test_decoding_step_computes_what_the_model_computes(
    preset: str, kv_heads: int, compute: torch.dtype | None
) -> None:
    model = make_model(preset, kv_heads=kv_heads)
    model.compute_dtype = compute
    tolerance = 0.15 if compute else TOLERANCE  # bfloat16: 8 bits, rounded in another order; logits here reach 15
    decode = Decoder(model)
    caches = [new_cache(model, rows=3, dtype=model.dtype) for _ in range(2)]
    prompts, lengths = torch.randint(16, 272, (3, 9)), [9, 4, 6]
    with torch.inference_mode():
        for cache in caches:
            cache.begin(0, 3, 9)
            model(prompts, cache)
        for _ in range(4):
            fed = torch.randint(16, 272, (3, 1))
            for cache in caches:
                cache.follow(torch.tensor(lengths)[:, None], torch.tensor([[20], [21], [22]]), lengths)
            wanted, found = model(fed, caches[0]).float(), decode(fed, caches[1])
            torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)
            lengths = [length + 1 for length in lengths]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["qwen3", "racer"])
@pytest.mark.parametrize("slow", [False, True])  # True: as on a processor without products in bfloat16
def test_a_step_with_rounded_weights_computes_what_the_model_rounded_so_computes(
    kind: Kind, preset: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if slow:
        monkeypatch.setattr("liuli.engine.quantise.multiplies_bfloat16", lambda _: False)
    model = make_model(preset)
    copy, decode = quantised_copy(model, kind), Decoder(model, kind)
    caches = [new_cache(model, rows=3, dtype=model.dtype) for _ in range(2)]
    fed_BT = torch.randint(16, 272, (3, 4))
    with torch.inference_mode():
        for at in range(4):
            for cache in caches:
                cache.follow(torch.full((3, 1), at), fed_BT[:, at - 1 : at] if at else torch.full((3, 1), -1), [at] * 3)
            step = fed_BT[:, at : at + 1]
            wanted, found = copy(step, caches[0]), decode(step, caches[1])
            torch.testing.assert_close(found, wanted, atol=0.15, rtol=0)  # rows are rounded to 8 bits; logits reach 15
            assert float((found - wanted).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("kind", ["muon", "adamw"])  # AdamW's fused kernel does not tell torch that it wrote
def test_engine_writes_with_the_weights_as_they_are_now(kind: str) -> None:
    model = make_model("qwen3")
    engine = Engine(model, byte_tokenizer())
    before = engine.generate([[0]], Sampling(temperature=0, max_tokens=8))[0]
    optimizer = Optimizer(model, OptimizerOptions(kind=kind, adam_lr=0.1, matrix_lr=0.1))
    model(torch.tensor([[0, 20, 30]])).square().mean().backward()
    optimizer.step(1.0)
    after = engine.generate([[0]], Sampling(temperature=0, max_tokens=8))[0]
    assert after == Engine(model, byte_tokenizer()).generate([[0]], Sampling(temperature=0, max_tokens=8))[0]
    assert after.logprobs != before.logprobs


@pytest.mark.parametrize("chunk", [1, 7])
def test_a_prompt_read_in_chunks_gives_the_same_answer(
    engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = some_prompts(6, seed=5)
    whole = engine.generate(prompts, Sampling(temperature=0, max_tokens=6))
    monkeypatch.setattr("liuli.engine.scheduler.LONGEST", chunk)
    parts = engine.generate(prompts, Sampling(temperature=0, max_tokens=6))
    assert [answer.ids for answer in parts] == [answer.ids for answer in whole]
    assert parts[3].logprobs == pytest.approx(whole[3].logprobs, abs=TOLERANCE)


@pytest.mark.slow
def test_a_compiled_step_writes_what_the_plain_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at their own positions, through many lengths, with drafts: one compilation serves them all, and every other
    model of the same shape."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    prompts = [prompt[:5] + [40] * at for at, prompt in enumerate(some_prompts(3, seed=2))]
    for seed in (0, 1):
        model = make_model("qwen3", layers=1, seed=seed)
        plain, compiled = (
            Engine(model, byte_tokenizer(), compiled=is_compiled, drafter=lookup if is_compiled else None)
            for is_compiled in (False, True)
        )
        compiled.warm_up()
        monkeypatch.setattr("liuli.engine.compiled._make", lambda *_: pytest.fail("compiled once more"))
        sampling = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
        wanted, found = (engine.generate(prompts, sampling) for engine in (plain, compiled))
        assert [answer.ids for answer in found] == [answer.ids for answer in wanted]
        for one, other in zip(wanted, found, strict=True):
            assert other.logprobs == pytest.approx(one.logprobs, abs=TOLERANCE)
        streamed = [token.id for token in compiled.stream(prompts[2], sampling)]  # alone, in a larger cache
        assert streamed == wanted[2].ids and compiled.stats.drafted > 0


def test_models_that_compute_otherwise_share_no_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no weight is part of the code: another kind of model of the same shapes, another epsilon, another cap."""
    made: set[str] = set()
    monkeypatch.setattr("liuli.engine.compiled._make", lambda file, *_: made.add(file.name))
    monkeypatch.setattr("liuli.engine.compiled._loaded", lambda _: lambda inputs: [inputs[0]])
    model = make_model("qwen3", layers=1)
    for change in ({}, {}, {"preset": "llama"}, {"norm_eps": 1e-3}, {"softcap": 5.0}):
        model.config = replace(make_model("qwen3", layers=1).config, **change)
        cache = KeyValueCache(
            layers=1, rows=1, slots=8, kv_heads=2, head_size=8, dtype=torch.float32, device=torch.device("cpu")
        )
        cache.begin(0, 1, 1)
        Decoder(model, compiled=True)(torch.zeros(1, 1, dtype=torch.int64), cache)
    assert len(made) == 4


def test_a_large_model_is_compiled_too_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liuli.engine.decode.MOST_BYTES", 0)
    model = make_model("qwen3", layers=1)
    assert Engine(model, byte_tokenizer()).decoder() is model
    decoder = Engine(model, byte_tokenizer(), compiled=True).decoder()
    assert isinstance(decoder, Decoder) and decoder.compiled
