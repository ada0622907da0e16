"""`liuli bench serve` measures the server, not itself: what it reads, counts and times is right."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from liuli.cli import app
from liuli.errors import LiuliError, UsageError
from liuli.server.load import Answer, Load, Reader, bench, length, prompt, spread
from tests.server.scripted import LiveServer, make_model


def stream(tokens: int, chunked: bool, head: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    """A server's bytes for an answer of so many tokens; several events may share a chunk."""

    def event(**more: object) -> bytes:
        return b"data: " + json.dumps({"id": "x", **more}, ensure_ascii=False).encode() + b"\n\n"

    words = [event(choices=[{"index": 0, "delta": {"content": f"词{n} data: \n\n"}}]) for n in range(tokens)]
    usage = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": tokens})
    events = [event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]), b": ping\n\n", *words]
    parts = [b"".join(events[:2]), *events[2:], usage + b"data: [DONE]\n\n"]
    if chunked:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b"")]
        head += b"Transfer-Encoding: chunked\r\n"
    else:
        head += b"Content-Length: %d\r\n" % len(b"".join(parts))
    return head + b"Content-Type: text/event-stream\r\n\r\n" + b"".join(parts)


def read(data: bytes, cuts: list[int]) -> Answer:
    async def run() -> Answer:
        reader = Reader(Answer(time.perf_counter()))
        places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        for start, end in pairwise(places):
            reader.data_received(data[start:end])
        reader.connection_lost(None)
        await reader.over
        return reader.answer

    with ThreadPoolExecutor(1) as thread:  # the browser's tests leave a loop running in this one
        return thread.submit(asyncio.run, run()).result()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=30), st.booleans())
def test_an_answer_is_read_the_same_however_the_network_cuts_it(cuts: list[int], chunked: bool) -> None:
    answer = read(stream(5, chunked), cuts)
    assert (answer.error, answer.tokens, answer.prompt_tokens, len(answer.gaps)) == ("", 5, 7, 4)
    assert 0 < answer.first <= answer.end


def test_an_answer_that_breaks_off_or_is_refused_is_an_error() -> None:
    whole = stream(5, chunked=True)
    assert "broke off" in read(whole[:-30], []).error
    assert read(b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nslow", []).error == "HTTP 429: slow"
    failed = b'data: {"error": {"message": "the engine broke"}}\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(failed)
    assert read(head + failed, []).error == "the engine broke"


def test_the_client_reads_ten_thousand_tokens_in_well_under_a_second() -> None:
    data = stream(10_000, chunked=True)
    began = time.process_time()
    answer = read(data, list(range(0, len(data), 120)))  # about a token at a time, as they come
    assert answer.tokens == 10_000 and time.process_time() - began < 0.6


def test_closed_load_counts_and_times_what_the_server_does(tmp_path: Path) -> None:
    with LiveServer(make_model(tmp_path / "tiny"), pause=0.004) as live:
        figures = bench(Load(live.url, clients=2, requests=6, prompt_tokens=12, max_tokens=5, warm_up=1))
        asked = live.voice.asked[1:]
    assert (figures["errors"], figures["requests"], figures["tokens"]) == ({}, 6, 30)
    assert figures["load"]["model"] == "tiny"
    assert 0.004 <= figures["per_token_s"]["p50"] < 0.03  # two answers take turns in one thread
    assert figures["whole_s"]["p50"] >= 5 * 0.004 and figures["seconds"] >= 30 * 0.004
    assert figures["tokens_per_s"] <= 1 / 0.004
    texts = [messages[0].content for messages, _, _ in asked]
    assert len({text.split()[0] for text in texts}) == 6  # no prefix to reuse, unless it is asked for
    assert all(10 <= len(text.split()) <= 14 for text in texts)


def test_open_load_counts_from_when_a_question_was_due(tmp_path: Path) -> None:
    """A server that takes 0.1 s for each answer, asked 40 times a second, falls behind; the times must show it."""
    with LiveServer(make_model(tmp_path / "tiny"), pause=0.05) as live:
        figures = bench(Load(live.url, rate=40, requests=20, prompt_tokens=3, max_tokens=2, warm_up=1))
    assert figures["errors"] == {} and figures["seconds"] > 20 * 0.1 * 0.9
    assert figures["whole_s"]["p99"] > 1.0  # the last one was due after half a second


def test_prompts_share_what_is_asked_for_and_no_more() -> None:
    load = Load("http://x", prompt_tokens=20, shared_prefix=10)
    first, second = (prompt(load, 20, number).split() for number in (1, 2))
    assert first[:10] == second[:10] and first[10] != second[10]
    assert prompt(load, 20, 1).split() == first  # the same seed, the same questions


def test_answers_have_the_lengths_that_were_asked_for() -> None:
    load = Load("http://x", max_tokens=40, spread=0.5)
    lengths = [length(load, prompt(load, 9, number)) for number in range(400)]
    assert min(lengths) in (20, 21) and max(lengths) in (59, 60) and abs(sum(lengths) / 400 - 40) < 2
    assert lengths == [length(load, prompt(load, 9, number)) for number in range(400)]
    with pytest.raises(UsageError, match="spread"):
        bench(Load("http://127.0.0.1:1", spread=1))


def test_percentiles_are_nearest_ranks() -> None:
    assert spread([float(n) for n in range(1, 101)]) == {"mean": 50.5, "p50": 50, "p90": 90, "p99": 99}
    assert spread([3.0]) == {"mean": 3, "p50": 3, "p90": 3, "p99": 3} and spread([]) == {}


def test_the_command_prints_a_table_or_json_and_fails_where_the_server_did(tmp_path: Path) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        asked = ["bench", "serve", live.url, "--clients", "3", "--requests", "6", "--max-tokens", "4"]
        said = CliRunner().invoke(app, [*asked, "--json"])
        figures = json.loads(said.stdout)
        assert said.exit_code == 0 and figures["tokens"] == 24 and set(figures["first_token_s"]) >= {"p50", "p99"}
        table = CliRunner().invoke(app, asked).stdout
        assert "to the first token" in table and "no errors" in table
        wrong = CliRunner().invoke(app, [*asked, "--model", "nowhere"])
        assert isinstance(wrong.exception, LiuliError) and "404" in str(wrong.exception)
    with pytest.raises(LiuliError, match="does not tell its models"):
        bench(Load(live.url))
    with pytest.raises(UsageError, match="no address"):
        bench(Load("127.0.0.1:8365"))
