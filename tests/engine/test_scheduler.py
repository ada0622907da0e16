"""What serving many promises, against the plainest way to write: no cache, one prompt, one token at a time."""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liuli.engine import Engine, KeyValueCache, Sampling
from liuli.engine import scheduler as scheduler_module
from liuli.engine.cache import BLOCK, PrefixCache
from liuli.engine.engine import Request
from liuli.engine.scheduler import Scheduler
from liuli.engine.speculate import DraftModel, lookup
from liuli.errors import LiuliError
from tests.engine.conftest import byte_tokenizer, make_model

CONTEXT = 96
ANSWER = 20


@functools.cache
def the_engine(preset: str = "qwen3") -> Engine:
    return Engine(make_model(preset, CONTEXT), byte_tokenizer())


@functools.cache
def the_pool(preset: str = "qwen3") -> list[tuple[list[int], list[int]]]:
    """Prompts, many of which begin alike, and the plain model's greedy answers."""
    draw = random.Random(1)
    stems = [[0, *(draw.randrange(16, 40) for _ in range(length))] for length in (0, 15, 33, 50)]
    prompts = [
        stem + [draw.randrange(16, 40) for _ in range(draw.randrange(1, 24))] for stem in stems for _ in range(6)
    ]
    return [(prompt, plain_answer(prompt, preset)) for prompt in prompts]


def plain_answer(prompt: list[int], preset: str = "qwen3") -> list[int]:
    engine, ids = the_engine(preset), list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + ANSWER:
            ids.append(int((engine.model(torch.tensor([ids]))[0, -1] + engine.ban_V).argmax()))
            if ids[-1] in engine.stops:
                break
    return ids[len(prompt) :]


def scheduler_of(engine: Engine, draw: random.Random) -> Scheduler:
    blocks = draw.choice([0, 3, 40])
    one = PrefixCache.bytes_per_block(Scheduler(engine, 1, CONTEXT).cache)
    chunk, patient = draw.choice([1, 7, 64, 4096]), draw.random() < 0.2
    return Scheduler(engine, draw.randrange(1, 6), CONTEXT, prefix_bytes=blocks * one, chunk=chunk, patient=patient)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_greedy_tokens_are_the_plain_models_in_500_random_schedules(part: int) -> None:
    preset = "racer" if part == 4 else "qwen3"
    pool, base = the_pool(preset), the_engine(preset)
    small = DraftModel(make_model("qwen3", CONTEXT, layers=1, seed=9), rows=3)
    for seed in range(part * 100, part * 100 + 100):
        draw = random.Random(seed)
        base.drafter = draw.choice([None, lookup, small, oracle(pool)])
        scheduler = scheduler_of(base, draw)
        coming = [
            (base.request(prompt, Sampling(temperature=0, max_tokens=ANSWER), priority=draw.choice([0, 0, 1])), answer)
            for prompt, answer in draw.sample(pool, draw.randrange(1, 9))
        ]
        everyone = list(coming)
        while coming or len(scheduler):
            while coming and draw.random() < 0.5:
                scheduler.submit(coming.pop()[0])
            if scheduler.running and draw.random() < 0.1:
                scheduler.preempt(draw.choice(scheduler.running))
            if draw.random() < 0.05:
                draw.choice(everyone)[0].cancelled = True
            scheduler.step()
            check_invariants(scheduler)
        for request, answer in everyone:
            written = [token.id for token in request.tokens]
            assert written == (answer[: len(written)] if request.cancelled else answer), seed
        assert scheduler.stats.written == sum(len(request.tokens) for request, _ in everyone)
    base.drafter = None


def oracle(pool: list[tuple[list[int], list[int]]]) -> object:
    """A drafter that knows the answers, and errs at every fifth token."""
    whole = {tuple(prompt): answer for prompt, answer in pool}

    def drafter(request: Request, room: int) -> list[int]:
        written = len(request.tokens)
        draft = whole[tuple(request.prompt)][written : written + max(0, min(3, room))]
        return [id if (written + at) % 5 else 17 for at, id in enumerate(draft)]

    return drafter


def check_invariants(scheduler: Scheduler) -> None:
    assert len(scheduler.running) <= scheduler.rows
    assert scheduler.lengths == [len(request.ids) - 1 for request in scheduler.running]
    assert scheduler.positions_B1[:, 0].tolist() == scheduler.lengths
    assert scheduler.fed_B1[:, 0].tolist() == [request.ids[-1] for request in scheduler.running]
    assert len(scheduler.sampler.rows) == len(scheduler.running)
    if scheduler.prefixes is not None:
        check_shelf(scheduler.prefixes)


def check_shelf(shelf: PrefixCache) -> None:
    places = [block.place for block in shelf.kept.values()]
    assert sorted(places + shelf.free) == list(range(shelf.blocks))
    for block in shelf.kept.values():
        assert block.children == sum(other.parent is block for other in shelf.kept.values())
        assert block.parent is None or block.parent.key in shelf.kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "a"]), st.lists(st.sampled_from([1, 2]), max_size=5), st.integers(0, 15)),
        max_size=12,
    ),
    st.integers(1, 7),
)
def test_the_shelf_gives_back_what_was_put_there_and_never_shares_across_salts(
    texts: list[tuple[str, list[int], int]], blocks: int
) -> None:
    """Each block of a text is 16 times one number, each text ends in a broken block; rows hold the hash of the text up
    to there, so that a wrong block is seen."""
    place = torch.device("cpu")
    desk = KeyValueCache(layers=2, rows=2, slots=96, kv_heads=1, head_size=3, dtype=torch.float32, device=place)
    shelf = PrefixCache(desk, blocks)
    for salt, pattern, rest in texts:
        tokens = [number for number in pattern for _ in range(BLOCK)] + [3] * rest
        marks = torch.tensor([float(hash((salt, *tokens[: at + 1])) % 10_007) for at in range(len(tokens))])
        chain = shelf.find(tokens, salt)
        if chain:
            shelf.take(chain, desk, 1)
            torch.testing.assert_close(
                desk.read(1, 0, len(chain) * BLOCK), marks[: len(chain) * BLOCK, None].expand(2, 2, 1, -1, 3)
            )
        desk.write(0, marks[:, None].expand(2, 2, 1, -1, 3))
        shelf.keep(tokens, desk, 0, salt)
        check_shelf(shelf)
        assert len(shelf.find(tokens, salt)) >= min(len(pattern), len(chain))


def test_an_int8_shelf_gives_back_nearly_what_was_put_there() -> None:
    place = torch.device("cpu")
    desk = KeyValueCache(layers=2, rows=2, slots=64, kv_heads=2, head_size=8, dtype=torch.float32, device=place)
    desk.write(0, torch.randn(2, 2, 2, 64, 8))
    shelf = PrefixCache(desk, 4, int8=True)
    tokens = list(range(50))
    shelf.keep(tokens, desk, 0)
    shelf.take(shelf.find(tokens), desk, 1)
    error = (desk.read(1, 0, 48) - desk.read(0, 0, 48)).abs().amax(-1)
    assert (error <= desk.read(0, 0, 48).abs().amax(-1) / 254 + 1e-6).all()  # half of one of 127 steps


def test_a_second_turn_reads_only_what_is_new() -> None:
    engine = the_engine()
    first = list(range(16, 76))
    turn = [token.id for token in engine.stream(first, Sampling(temperature=0, max_tokens=8))]
    before = engine.streams.stats.read, engine.streams.stats.reused
    second = first + turn + [20, 21]
    answer = [token.id for token in engine.stream(second, Sampling(temperature=0, max_tokens=8))]
    read, reused = engine.streams.stats.read - before[0], engine.streams.stats.reused - before[1]
    assert (read, reused) == (len(second) - 64, 64)
    assert answer == plain_answer(second)[:8]


def test_prompts_that_are_partly_known_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself would cost a pass over the model; they are read from where the least is known."""
    engine = the_engine()
    page = list(range(16, 64))
    prompts = [[*page[: 48 - 16 * (at % 2)], *([80 + at] * (at + 3))] for at in range(6)]
    scheduler = Scheduler(engine, 8, CONTEXT, prefix_bytes=2**20)

    def answers(asked: list[list[int]]) -> list[list[int]]:
        requests = [engine.request(prompt, Sampling(temperature=0, max_tokens=4)) for prompt in asked]
        for request in requests:
            scheduler.submit(request)
        while len(scheduler):
            scheduler.step()
        return [[token.id for token in request.tokens] for request in requests]

    answers([page])
    passes: list[int] = []
    hidden = engine.model.hidden
    monkeypatch.setattr(engine.model, "hidden", lambda ids, cache: passes.append(len(ids)) or hidden(ids, cache))
    assert answers(prompts) == [plain_answer(prompt)[:4] for prompt in prompts]
    assert passes == [6] and scheduler.stats.reused == 6 * 32


def test_the_same_seed_gives_the_same_answer_pre_empted_or_not() -> None:
    engine = the_engine()
    prompt, _ = the_pool()[3]
    sampling = Sampling(temperature=1.2, top_p=0.9, presence_penalty=0.5, repetition_penalty=1.1, max_tokens=ANSWER)
    request = engine.request(prompt, sampling)
    wanted = engine.generate([prompt], request.sampling)[0].ids
    scheduler = Scheduler(engine, 2, CONTEXT)
    scheduler.submit(request)
    while len(scheduler):
        scheduler.step()
        if scheduler.running:
            scheduler.preempt(request)
    assert [token.id for token in request.tokens] == wanted


@pytest.mark.parametrize("drafter", ["lookup", "small"])
def test_a_drawn_answer_is_the_same_with_and_without_speculation(drafter: str) -> None:
    """A stronger promise than the same distribution: every token is drawn with the request's own random number."""
    engine = the_engine()
    draft = lookup if drafter == "lookup" else DraftModel(engine.model)
    drafted = 0
    # few tokens, so that what came once comes again; the model itself foretells its likeliest tokens
    likely = tuple((id, 12.0) for id in (20, 21, 22)) if drafter == "lookup" else ()
    for seed, (prompt, _) in enumerate(the_pool()):
        sampling = Sampling(0.7, min_p=0.01, frequency_penalty=0.1, logit_bias=likely, max_tokens=ANSWER, seed=seed)
        wanted = engine.generate([prompt], sampling)[0]
        request = engine.request(prompt, sampling)
        engine.drafter = draft
        scheduler = Scheduler(engine, 1, CONTEXT)
        scheduler.submit(request)
        while len(scheduler):
            scheduler.step()
        engine.drafter = None
        drafted += scheduler.stats.accepted
        assert request.answer().ids == wanted.ids
        assert request.answer().logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert drafted > 0


def test_who_matters_more_goes_first_and_the_other_loses_nothing() -> None:
    engine = the_engine()
    (low, low_answer), (high, high_answer) = the_pool()[0], the_pool()[7]
    greedy = Sampling(temperature=0, max_tokens=ANSWER)
    scheduler = Scheduler(engine, 1, CONTEXT)
    patient, urgent = engine.request(low, greedy), engine.request(high, greedy, priority=1)
    scheduler.submit(patient)
    scheduler.step()
    scheduler.submit(urgent)
    order = [request for _ in range(60) for request in scheduler.step()]
    assert order == [urgent, patient] and scheduler.stats.preempted == 1
    assert [token.id for token in patient.tokens] == low_answer
    assert [token.id for token in urgent.tokens] == high_answer


def test_a_long_prompt_does_not_hold_up_who_is_being_answered() -> None:
    engine = the_engine()
    scheduler = Scheduler(engine, 2, CONTEXT, chunk=8)
    short, long = (engine.request(p, Sampling(temperature=0, max_tokens=15)) for p in ([0, 20], [0] + [30] * 63))
    scheduler.submit(short)
    scheduler.step()
    scheduler.submit(long)
    while not long.tokens:
        before = len(short.tokens), scheduler.stats.read
        scheduler.step()
        assert len(short.tokens) == before[0] + 1 and scheduler.stats.read - before[1] <= 8


def evenly(steps: int, each: float) -> list[int]:
    """How many prompts come at each step."""
    return [math.floor((step + 1) * each) - math.floor(step * each) for step in range(steps)]


def lost(arrivals: list[int], R: int, one_pass: float, reads: Callable[[int], bool]) -> float:
    """Steps lost by all: those who wait for company, and the R who are held up by each pass."""
    waiting, cost = 0, 0.0
    for came in arrivals:
        waiting += came
        cost += waiting
        if waiting and reads(waiting):
            waiting, cost = 0, cost + R * one_pass
    return cost


def the_rule(R: int, one_pass: float) -> Callable[[int], bool]:
    """Whether the scheduler reads now, of so many who wait; a step takes a second."""
    held: Any = SimpleNamespace(running=[0] * R, waiting=[], patient=False, reading=None, chunk=256)
    held.waited, held.pass_seconds = 0.0, one_pass

    def reads(W: int) -> bool:
        held.waiting, held.waited = [0] * W, held.waited + W
        return Scheduler._budget(held) > 0

    return reads


@pytest.mark.parametrize(("R", "one_pass"), [(44, 0.5), (30, 1.3), (60, 0.1), (3, 1.0), (0, 1.0)])
def test_prompts_wait_for_company_as_long_as_it_pays(R: int, one_pass: float) -> None:
    for each in (0.05, 0.3, 0.7, 1.0):
        arrivals = evenly(2000, each)
        best = min(lost(arrivals, R, one_pass, lambda waiting, least=least: waiting >= least) for least in range(1, 65))
        near = 1.1 if each > 0.2 and R * one_pass > 20 else 2  # steps are whole: the best number may lie between two
        assert lost(arrivals, R, one_pass, the_rule(R, one_pass)) <= near * best + R * one_pass
    draw = random.Random(0)
    for chance in (0.02, 0.1, 0.5):  # however they come: at most twice what one who knows the future would lose
        arrivals = [draw.choice((0, 1, 1, 5)) if draw.random() < chance else 0 for _ in range(300)]
        ahead = [0.0] * 301  # the least that is lost from a step on where nobody waits
        for step in reversed(range(300)):
            waiting, cost, found = 0, 0.0, math.inf
            for end in range(step, 300):
                waiting, cost = waiting + arrivals[end], cost + waiting + arrivals[end]
                found = min(found, cost + R * one_pass * (waiting > 0) + ahead[end + 1])
            ahead[step] = found
        assert lost(arrivals, R, one_pass, the_rule(R, one_pass)) <= 2 * ahead[0] + R * one_pass


def test_many_who_wait_are_read_sooner_and_no_short_prompt_is_cut_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "PASS", 0)  # a pass costs nothing: nobody waits for company
    engine = the_engine()
    scheduler = Scheduler(engine, 9, CONTEXT, chunk=16)
    answered, *waiting = (engine.request([0, *[20 + n] * 9], Sampling(temperature=0, max_tokens=15)) for n in range(9))
    scheduler.submit(answered)
    scheduler.step()
    for request in waiting:
        scheduler.submit(request)
    scheduler.step()  # eight wait for one: eight times sixteen tokens, room for all of them
    assert all(request.tokens for request in waiting)
    late = [engine.request([0, *[40 + n] * 9], Sampling(temperature=0, max_tokens=2)) for n in range(2)]
    scheduler = Scheduler(engine, 9, CONTEXT, chunk=16)
    for group in ([engine.request([0, 20 + n], Sampling(temperature=0, max_tokens=15)) for n in range(2)], late):
        for request in group:
            scheduler.submit(request)
        before = scheduler.stats.read
        scheduler.step()
    assert scheduler.stats.read - before == 10 and late[0].tokens  # the six that are left are not begun with


def test_what_could_never_fit_is_refused() -> None:
    engine = the_engine()
    with pytest.raises(LiuliError, match="20 tokens together, 29"):
        Scheduler(engine, 1, 20).submit(engine.request([0] * 10, Sampling(max_tokens=20)))


def test_a_cancelled_answer_frees_its_row_within_one_step() -> None:
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer(), rows=1)
    stream = engine.stream([0, 20], Sampling(temperature=0, max_tokens=50))
    next(stream)
    assert len(engine.streams) == 1
    stream.close()
    engine.streams.step()
    assert len(engine.streams) == 0 and not engine.streams.running


def test_weights_that_change_after_an_answer_was_left_write_the_next_one() -> None:
    model, other = make_model("qwen3", context=128), make_model("qwen3", context=128, seed=5)
    engine, prompt = Engine(model, byte_tokenizer()), list(range(20, 60))
    greedy = Sampling(temperature=0, max_tokens=8, ignore_eos=True)
    left = engine.stream(prompt, greedy)
    next(left)
    left.close()
    model.load_state_dict(other.state_dict())
    wanted = [token.id for token in Engine(other, byte_tokenizer()).stream(prompt, greedy)]
    assert [token.id for token in engine.stream(prompt, greedy)] == wanted


def test_streams_are_written_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "PASS", 0)
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer())
    prompts = [prompt for prompt, _ in the_pool()[:8]]
    streams = [engine.stream(prompt, Sampling(temperature=0, max_tokens=5)) for prompt in prompts]
    answers = [[next(stream).id for stream in streams] for _ in range(5)]
    assert [list(ids) for ids in zip(*answers, strict=True)] == [answer[:5] for _, answer in the_pool()[:8]]
    assert engine.streams.stats.steps <= 5 + len(prompts)


def test_nobody_is_told_less_than_is_written_whoever_ends_or_waits() -> None:
    """Twelve answers of different lengths take turns in three rows; those who wait make steps, too."""
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer(), rows=3)
    asked = [(*the_pool()[n], 3 + 5 * n % 11) for n in range(12)]
    told: dict[tuple[int, ...], list[int]] = {tuple(prompt): [] for prompt, *_ in asked}
    live = [(prompt, engine.poll(prompt, Sampling(temperature=0, max_tokens=most))) for prompt, _, most in asked]
    turns = 0
    while live:
        turns += 1
        for prompt, stream in list(live):
            news = list(itertools.takewhile(lambda token: token is not None, stream))
            told[tuple(prompt)] += [token.id for token in news if token is not None]
            if news and news[-1] is not None and news[-1].stopped_by is not None:
                live.remove((prompt, stream))
        for request in engine.streams.running:
            assert len(told[tuple(request.prompt)]) == len(request.tokens)
    assert engine.stats.steps >= turns - 1  # hardly a turn in which nobody makes a step
    assert [told[tuple(prompt)] for prompt, *_ in asked] == [answer[:most] for _, answer, most in asked]


BAD = 200  # a byte that no prompt of the pool holds


def breaks_at(engine: Engine, monkeypatch: pytest.MonkeyPatch, bad: int = BAD) -> None:
    """Reading a text that holds `bad` fails, whoever else is read beside it."""
    hidden = engine.model.hidden

    def broken(ids: torch.Tensor, cache: KeyValueCache) -> torch.Tensor:
        if (ids == bad).any():
            raise MemoryError("no room for this one")
        return hidden(ids, cache)

    monkeypatch.setattr(engine.model, "hidden", broken)


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("length", [5, 40])  # read beside others; read by itself, in chunks
def test_a_prompt_that_cannot_be_read_fails_alone(monkeypatch: pytest.MonkeyPatch, position: int, length: int) -> None:
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer())
    engine._streams = Scheduler(engine, 8, CONTEXT, prefix_bytes=2**18, chunk=32)
    breaks_at(engine, monkeypatch)
    greedy = Sampling(temperature=0, max_tokens=ANSWER)
    running = engine.stream(*(the_pool()[0][0], greedy))
    begun = [next(running).id]
    asked = [(prompt, answer) for prompt, answer in the_pool()[1:4]]
    asked.insert(position, ([0, *[BAD] * length], []))
    streams = [engine.poll(prompt, greedy) for prompt, _ in asked]
    said: list[list[int]] = [[] for _ in asked]
    failed = []
    live = list(range(len(asked)))
    while live:
        for at in list(live):
            try:
                if (token := next(streams[at])) is not None:
                    said[at].append(token.id)
            except (StopIteration, MemoryError) as error:
                live.remove(at)
                failed += [at] * isinstance(error, MemoryError)
    assert failed == [position] and said == [answer for _, answer in asked]
    assert begun + [token.id for token in running] == the_pool()[0][1]
    check_invariants(engine.streams)
    engine.streams.step()
    assert len(engine.streams) == 0


@pytest.mark.parametrize("where", ["_write_one", "_leave", "_make_room"])
def test_what_breaks_while_all_are_written_fails_them_all_and_the_next_is_answered(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer(), rows=3)
    greedy = Sampling(temperature=0, max_tokens=ANSWER)
    streams = [engine.poll(prompt, greedy) for prompt, _ in the_pool()[:3]]
    waits = engine.poll(the_pool()[3][0], greedy)
    begun = [[next(stream) is not None for stream in [*streams, waits]] for _ in range(2)]
    assert begun == [[False] * 4, [True, True, True, False]]

    def broken(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine.streams, where, broken)
    for stream in streams:
        with pytest.raises(RuntimeError, match="device is gone"):
            list(stream)
    assert [token.id for token in waits if token is not None] == the_pool()[3][1]
    check_invariants(engine.streams)
    assert [token.id for token in engine.stream(the_pool()[5][0], greedy)] == the_pool()[5][1]


def test_a_batch_in_which_something_breaks_is_an_error_not_half_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_model("qwen3", CONTEXT), byte_tokenizer())
    breaks_at(engine, monkeypatch)
    with pytest.raises(MemoryError, match="no room"):
        engine.generate([the_pool()[0][0], [0, BAD]], Sampling(temperature=0, max_tokens=4))


def test_an_int8_shelf_changes_log_probabilities_a_little_and_what_is_not_shared_not_at_all() -> None:
    model, first = make_model("qwen3", CONTEXT), list(range(16, 76))
    greedy = Sampling(temperature=0, max_tokens=8)
    plain, rounded = (Engine(model, byte_tokenizer(), prefix_int8=int8) for int8 in (False, True))

    def said(engine: Engine, prompt: list[int]) -> list[float]:
        return [token.logprob for token in engine.stream(prompt, greedy)]

    assert said(rounded, first) == said(plain, first)
    exact, near = said(plain, [*first, 20]), said(rounded, [*first, 20])
    assert rounded.stats.reused == plain.stats.reused == 48
    assert near != exact and near == pytest.approx(exact, abs=0.1)  # keys and values to one part in 254 of the largest
    assert rounded.streams.prefixes is not None and plain.streams.prefixes is not None
    assert rounded.streams.prefixes.blocks > 1.9 * plain.streams.prefixes.blocks


def test_an_answer_that_takes_too_long_ends_as_too_long() -> None:
    engine = the_engine()
    (prompt, answer), late = the_pool()[0], time.monotonic()
    told = list(engine.stream(prompt, Sampling(temperature=0, max_tokens=ANSWER), deadline=late))
    assert [token.id for token in told] == answer[:1] and told[0].stopped_by == "length"
