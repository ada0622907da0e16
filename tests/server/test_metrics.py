"""What Prometheus reads is what happened; every answer has an id; strangers make no series."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.scripted import LiveServer, make_model, make_run, until

HTTP = httpx.Client()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveServer]:
    with LiveServer(make_model(tmp_path / "tiny"), pause=0.002) as server:
        yield server


def figures(live: LiveServer) -> dict[str, float]:
    """Every sample as `name{label,label}` -> value, read by Prometheus' own parser."""
    said = HTTP.get(f"{live.url}/metrics")
    assert said.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(said.text) for sample in family.samples]
    return {f"{each.name}{{{','.join(each.labels.values())}}}": each.value for each in samples}


def ask(live: LiveServer, text: str, **more: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return HTTP.post(f"{live.url}/v1/chat/completions", json=body)


def test_the_figures_are_what_happened(live: LiveServer) -> None:
    used = [ask(live, "long", max_tokens=n).json()["usage"] for n in (10, 20)]
    ask(live, "long", max_tokens=30, stream=True)
    ask(live, "hi there", max_tokens=0)  # refused
    ask(live, "break")
    found = figures(live)
    assert found["liuli_requests_total{POST,/v1/chat/completions,200}"] == 3
    assert found["liuli_requests_total{POST,/v1/chat/completions,400}"] == 1
    assert found["liuli_requests_total{POST,/v1/chat/completions,500}"] == 1
    assert found["liuli_answers_total{length}"] == 3 and found["liuli_answers_total{error}"] == 1
    assert found["liuli_answer_tokens_total{}"] == sum(each["completion_tokens"] for each in used) + 30 + 2
    assert found["liuli_prompt_tokens_total{}"] == 4 * used[0]["prompt_tokens"]  # three are "long", one is "break"
    assert found["liuli_time_to_first_token_seconds_count{}"] == 4
    assert found["liuli_time_per_output_token_seconds_count{}"] == found["liuli_answer_seconds_count{}"] == 3
    mean = found["liuli_time_per_output_token_seconds_sum{}"] / 3
    assert 0.001 < mean < 0.01  # the voice takes two milliseconds for a token; the first may be noticed late
    assert found["liuli_answer_seconds_sum{}"] >= 60 * 0.002
    assert found["liuli_answers_running{}"] == found["liuli_answers_waiting{}"] == 0
    assert found["process_resident_memory_bytes{}"] > 50e6


def test_running_answers_are_seen_and_a_client_that_leaves_is_cancelled(live: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": "long"}], "stream": True}
    with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as said:
        pieces = said.iter_bytes()  # httpx hangs up when it is let go
        next(pieces)
        assert figures(live)["liuli_answers_running{}"] == 1
    until(lambda: figures(live)["liuli_answers_running{}"] == 0)
    assert figures(live)["liuli_answers_total{cancelled}"] == 1


def test_a_client_that_leaves_in_the_midst_of_its_body_is_no_failure(
    live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    place = urlsplit(live.url)
    with socket.create_connection((place.hostname, place.port)) as line:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        line.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
        until(lambda: HTTP.get(f"{live.url}/health").status_code == 200)
    until(lambda: figures(live).get("liuli_requests_total{POST,/v1/chat/completions,499}") == 1)
    assert not caplog.records


def test_prompts_that_were_not_computed_again_are_counted(real: LiveServer) -> None:
    """At a real engine, also while it has nothing to do."""
    before = figures(real)["liuli_prefix_cache_tokens{}"]
    for _ in range(2):
        assert ask(real, "the same question " * 10, max_tokens=2).status_code == 200
    reused = figures(real)["liuli_prefix_cache_tokens{}"] - before
    assert reused >= 32 and reused % 16 == 0  # whole blocks


def test_strangers_make_no_series(live: LiveServer) -> None:
    def series() -> set[str]:
        return {name for name in figures(live) if name.startswith("liuli_requests_total")}

    HTTP.get(f"{live.url}/nowhere/0")
    HTTP.request("BREW", f"{live.url}/nowhere/0")
    HTTP.get(f"{live.url}/v1/models/none/0")
    series()
    before = series()
    for n in range(1, 20):
        assert HTTP.get(f"{live.url}/nowhere/{n}").status_code == 404
        HTTP.request(f"BREW{n}", f"{live.url}/nowhere/{n}")
        HTTP.get(f"{live.url}/v1/models/none/{n}")
    assert series() == before


def test_every_answer_has_an_id_and_a_clients_own_is_kept_if_it_is_harmless(live: LiveServer) -> None:
    seen = set()
    for path in ("/health", "/nowhere", "/v1/models", "/"):
        seen.add(HTTP.get(live.url + path).headers["x-request-id"])
    assert len(seen) == 4 and all(id.startswith("req_") for id in seen)
    for given, kept in (("abc-123:4.5", True), ("a b", False), ("x" * 129, False), ("<script>", False)):
        said = HTTP.get(f"{live.url}/health", headers={"x-request-id": given})
        assert (said.headers["x-request-id"] == given) is kept


def test_alive_is_not_ready(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        assert HTTP.get(f"{live.url}/health").status_code == 200
        early = HTTP.get(f"{live.url}/ready")
        assert (early.status_code, early.json()["error"]["code"]) == (503, "still_learning")
        make_model(run / "chat")
        assert HTTP.get(f"{live.url}/ready").json() == {"status": "ready"}


def test_what_is_no_answer_is_not_counted_as_one_but_its_tokens_are(real: LiveServer) -> None:
    def counted() -> dict[str, float]:
        return {name: value for name, value in figures(real).items() if name.startswith("liuli_answers_total")}

    before, read = counted(), figures(real)["liuli_prompt_tokens_total{}"]
    for path, body in (("tokenize", {"prompt": "hello"}), ("apply-template", {"messages": [{"role": "user"}]})):
        assert HTTP.post(f"{real.url}/{path}", json=body).status_code == 200
    used = HTTP.post(f"{real.url}/v1/embeddings", json={"input": ["hello", "world"]}).json()["usage"]
    assert counted() == before and used["prompt_tokens"] > 2
    assert figures(real)["liuli_prompt_tokens_total{}"] == read + used["prompt_tokens"]
    checked = HTTP.post(
        f"{real.url}/v1/completions", json={"prompt": "x", "max_tokens": 1, "logit_bias": {"20": 1}, "ignore_eos": True}
    )
    assert checked.status_code == 200
    assert sum(counted().values()) == sum(before.values()) + 1
    assert figures(real)["liuli_answers_waiting{}"] == figures(real)["liuli_answers_running{}"] == 0
