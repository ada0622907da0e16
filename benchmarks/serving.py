"""What the server makes of the engine: many clients, many connections, a second turn, memory over many requests.

    python benchmarks/serving.py MODEL [--clients 64] [--weights int8] [--compiled] [--parts load connections …]

MODEL is a chat model's folder, for example runs/laptop/aligned, or a size of decode.py (3m, 10m, 30m) with random
weights. `liuli serve` runs in a process of its own, the client in this one, on the same cores.

load: the same questions with answers of the same length by the engine alone (offline), by as many clients at once, and
arriving at random at half of that rate. connections: 1,000 are opened and held while questions are answered. turn: time
to the first token of a second turn after 1,500 tokens, with what was read before and without, on a random model of 10M
parameters with a context of 2,048. memory: what the server holds after each tenth of 10,000 requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from decode import SIZES, VOCABULARY, byte_tokenizer

from liuli.engine import Model, Sampling
from liuli.engine.quantise import KINDS
from liuli.model import Transformer, qwen3, save
from liuli.server.load import Load, bench, length, prompt
from liuli.text import Message, render

PARTS = ("load", "connections", "turn", "memory")


def main() -> None:
    options = read_options()
    flags = (["--weights", options.weights] if options.weights else []) + (["--compiled"] if options.compiled else [])
    flags += ["--replicas", str(options.replicas)]
    with tempfile.TemporaryDirectory() as made:
        if str(options.model) in SIZES:
            options.model = random_model(Path(made) / "model", *SIZES[str(options.model)], context=1024)
        if set(options.parts) - {"turn"}:
            parts_of_one_server(options, flags)
        if "turn" in options.parts:
            with server(random_model(Path(made) / "long", *SIZES["10m"], context=2048), flags) as (url, _):
                second_turn(url)


def parts_of_one_server(options: argparse.Namespace, flags: list[str]) -> None:
    """Load, connections, memory."""
    with server(options.model, flags) as (url, process):
        if "load" in options.parts:
            under_load(options, url)
        if "connections" in options.parts:
            with_connections(url, options.connections)
        if "memory" in options.parts:
            over_time(url, process, options.requests)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="of load; the best is reported, and each one printed")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--spread", type=float, default=0.0, help="answers of tokens * (1 - spread to 1 + spread)")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--weights", choices=KINDS)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--replicas", type=int, default=1, help="of the server; offline is one engine in any case")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    return parser.parse_args()


@contextmanager
def server(model: Path, flags: list[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`liuli serve` on a free port until the end of the block."""
    command = [sys.executable, "-m", "liuli", "serve", str(model), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = process.stdout.readline()
        try:
            yield re.findall(r"http://[\d.:]+", told)[0], process
        finally:
            process.terminate()


# --- load


def under_load(options: argparse.Namespace, url: str) -> None:
    """Offline, all clients at once, and half of that rate; interleaved."""
    how = {"weights": options.weights, "compiled": options.compiled}
    asked: dict[str, Any] = {"max_tokens": options.tokens, "spread": options.spread, "ignore_eos": True}
    load = Load(url, clients=options.clients, requests=4 * options.clients, **asked)
    model = Model(options.model, **how)
    offline, served, rate = 0.0, 0.0, 0.0
    for _ in range(options.rounds):
        alone, figures = offline_speed(model, load), bench(load)
        assert not figures["errors"], figures["errors"]
        print(f"offline {alone:,.0f} tokens/s, {load.clients} clients {figures['tokens_per_s']:,.0f}", flush=True)
        offline, served = max(offline, alone), max(served, figures["tokens_per_s"])
        rate = max(rate, figures["requests_per_s"])
    print(f"best: {served / offline:.0%} of offline; {rate:.1f} answers/s")
    half = bench(Load(url, requests=load.requests, rate=rate / 2, **asked))
    first = half["first_token_s"]
    print(f"half load: first token p50 {1000 * first['p50']:.0f} ms, p99 {1000 * first['p99']:.0f} ms", flush=True)


def offline_speed(model: Model, load: Load) -> float:
    """Tokens a second of the engine alone over the same questions, all there from the beginning."""
    words = load.prompt_tokens

    def tokens(text: str) -> list[int]:
        return render([Message("user", text)], model.tokenizer, answer=True).tokens

    # as bench does: a word is not a token
    words = max(1, round(words * load.prompt_tokens / len(tokens(prompt(load, words, -1)))))
    texts = [prompt(load, words, number) for number in range(load.requests)]
    prompts = list(map(tokens, texts))
    samplings = [Sampling(1.0, max_tokens=length(load, text), ignore_eos=True, seed=0) for text in texts]
    model.engine.generate(prompts[:2], Sampling(max_tokens=2))
    started = time.perf_counter()
    answers = model.engine.generate(prompts, samplings)
    return sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - started)


# --- connections


def with_connections(url: str, count: int) -> None:
    """Open them, use each once, keep them, and ask again while all are open."""
    place = url.removeprefix("http://").split(":")
    with ExitStack() as held:
        connections = []
        for _ in range(count):
            connection = http.client.HTTPConnection(place[0], int(place[1]), timeout=30)
            connection.connect()
            held.callback(connection.close)
            connections.append(connection)
        started = time.perf_counter()
        for connection in connections:
            connection.request("GET", "/health")
        for connection in connections:
            assert connection.getresponse().read()
        print(f"{count} connections: all answered once in {time.perf_counter() - started:.1f} s")
        figures = bench(Load(url, clients=16, requests=64, max_tokens=32, ignore_eos=True))
        assert not figures["errors"], figures["errors"]
        time.sleep(20)
        alive = sum(is_open(connection.sock) for connection in connections)
        first = figures["first_token_s"]["p99"]
        print(f"{alive} still open; 16 clients beside them: first token p99 {1000 * first:.0f} ms", flush=True)


def is_open(sock: socket.socket) -> bool:
    """A connection that the other side has closed is readable (its end)."""
    return not select.select([sock], [], [], 0)[0]


# --- memory


def over_time(url: str, process: subprocess.Popen[str], requests: int) -> None:
    """Short answers, all different, sixteen at once."""
    held = []
    for tenth in range(10):
        figures = bench(Load(url, clients=16, requests=requests // 10, prompt_tokens=48, max_tokens=8, seed=tenth))
        assert not figures["errors"], figures["errors"]
        held.append(resident(process.pid))
        print(f"{(tenth + 1) * requests // 10} requests: {held[-1] / 2**20:.0f} MiB", flush=True)
    print(f"from the second tenth to the last: {(held[-1] - held[1]) / 2**20:+.1f} MiB")


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024


# --- a second turn


def random_model(folder: Path, layers: int, width: int, context: int) -> Path:
    """Random weights, a token a byte."""
    torch.manual_seed(0)
    byte_tokenizer().save(folder.parent / "tokenizer")
    model = Transformer(qwen3(VOCABULARY, width, layers, context=context, tied=True))
    save(model, folder, tokenizer_folder=folder.parent / "tokenizer", provenance={"stage": "benchmark"})
    return folder


def second_turn(url: str) -> None:
    """The same second turn after its first one, and after a first turn of other words."""
    known, fresh = [], []
    first_token(url, talk("warm up ", 100))
    for round in range(5):
        story = f"{round} once upon a time there was a fox who learned to count the stars. " * 30
        first_token(url, talk(story, 1480))
        known.append(first_token(url, [*talk(story, 1480), said("Yes."), *talk("And then?", 20)]))
        other = f"another {story}"
        fresh.append(first_token(url, [*talk(other, 1480), said("Yes."), *talk("And then?", 20)]))
    ratio = sorted(fresh)[2] / sorted(known)[2]
    print(f"second turn after 1,500 tokens: first token {1000 * sorted(known)[2]:.0f} ms, ", end="")
    print(f"{1000 * sorted(fresh)[2]:.0f} ms where nothing was read before: {ratio:.1f}x sooner")


def talk(text: str, length: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": text[:length]}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def first_token(url: str, messages: list[dict[str, str]]) -> float:
    """Seconds to the first token of an answer."""
    place = url.removeprefix("http://").split(":")
    body: dict[str, Any] = {"model": "long", "messages": messages, "stream": True, "max_tokens": 2, "ignore_eos": True}
    connection = http.client.HTTPConnection(place[0], int(place[1]), timeout=60)
    started = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    came = 0
    while came < 2:  # the first event names the role, the second is the first token
        came += answer.readline().startswith(b"data:")
    taken = time.perf_counter() - started
    answer.read()
    connection.close()
    return taken


if __name__ == "__main__":
    main()
