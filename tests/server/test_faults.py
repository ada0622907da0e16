"""What goes wrong around a server harms nobody else: a real process, real sockets, real signals."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.scripted import make_model, until

# `liuli serve` itself, with a scripted voice and with less patience
CHILD = """
import ctypes, sys, threading
from pathlib import Path
import liuli.server.connection as connection
import liuli.server.metrics as metrics
from liuli.server import serve
from tests.server.scripted import ScriptedVoice

path, pause, drain, seconds = sys.argv[1:]
connection.HEADER_SECONDS = connection.WRITE_SECONDS = metrics.BODY_SECONDS = float(seconds)

class Voice(ScriptedVoice):
    def reply(self, messages, *how):
        if messages[-1].content == "exit":
            raise SystemExit("the thread ends")
        if messages[-1].content == "kill":  # what cannot be caught where it is raised
            thread = ctypes.c_ulong(threading.get_ident())
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
        yield from super().reply(messages, *how)

def load(path):
    return Voice(path, pause=float(pause), context=2000)

serve(Path(path), port=0, drain=int(drain), load=load, ready=lambda url: print(url, flush=True))
"""
LONG = " ".join(f"word{i}" for i in range(400))
HTTP = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))


class Server:
    """A server process. pause: seconds a token takes; drain: seconds to end in; seconds: how patient it is."""

    def __init__(self, model: Path, pause: float = 0.0, drain: int = 30, seconds: float = 30) -> None:
        command = [sys.executable, "-c", CHILD, str(model), str(pause), str(drain), str(seconds)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe would fill up with what the faults make it say)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env, cwd=Path(__file__).parents[2]
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.ended()[1]
        self.address = ("127.0.0.1", int(self.url.rsplit(":", 1)[1]))

    def figure(self, name: str) -> float:
        lines = HTTP.get(f"{self.url}/metrics").text.splitlines()
        return float(next((line.split()[-1] for line in lines if line.startswith(name)), "0"))

    def ask(self, text: str, **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **more}
        return HTTP.post(f"{self.url}/v1/chat/completions", json=body)

    def says(self, text: str = "hi") -> str:
        return str(self.ask(text).json()["choices"][0]["message"]["content"])

    def connect(self, sent: bytes) -> socket.socket:
        sock = socket.create_connection(self.address, timeout=30)
        sock.sendall(sent)
        return sock

    def end(self, sig: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(sig)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        self.process.communicate(timeout=60)
        self.log.seek(0)
        return self.process.returncode, self.log.read()


def request(text: str, **more: Any) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": text}], "stream": True, **more}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def text_of(stream: bytes) -> str:
    events = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content") or "" for delta in deltas)


def read_all(sock: socket.socket, until_bytes: bytes = b"[DONE]") -> bytes:
    data = b""
    while until_bytes not in data and (piece := sock.recv(65536)):
        data += piece
    return data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    """One server for all faults that it survives; at the end it must still stop in order."""
    made = Server(model, pause=0.001, seconds=2.0)
    yield made
    code, err = made.end()
    assert code == 0, err


def test_sigterm_under_load_lets_every_answer_end_whole_and_takes_no_new_one(model: Path) -> None:
    server = Server(model, pause=0.0002)
    with ThreadPoolExecutor(8) as pool:

        def stream(number: int) -> bytes:
            with server.connect(request("long")) as sock:
                return read_all(sock)

        asked = [pool.submit(stream, number) for number in range(8)]
        until(lambda: server.figure("liuli_answers_running ") == 8)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError):
            socket.create_connection(server.address, timeout=1)
        said = [each.result() for each in asked]
    assert all(b"data: [DONE]\n\n" in each for each in said)
    assert {text_of(each) for each in said} == {LONG}
    assert server.ended() == (0, "")


@pytest.mark.parametrize(("drain", "signals"), [(1, 1), (60, 2)])
def test_an_end_comes_in_time_and_a_second_signal_ends_at_once(model: Path, drain: int, signals: int) -> None:
    server = Server(model, pause=0.15, drain=drain)
    with server.connect(request("long")) as sock:
        sock.recv(100)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        if signals == 2:
            time.sleep(0.5)
            assert server.process.poll() is None
            server.process.send_signal(signal.SIGTERM)
        server.ended()
        assert time.monotonic() - began < 30  # the answer would have taken two minutes


def test_a_client_that_leaves_ends_its_work_and_no_others(server: Server) -> None:
    stays = server.connect(request("long"))
    with server.connect(request("long")) as leaves:
        leaves.recv(100)
    until(lambda: server.figure("liuli_answers_running ") == 1, 5)
    assert text_of(read_all(stays)) == LONG
    stays.close()
    assert server.says().startswith("You said")


def test_a_slow_reader_loses_nothing_and_slows_nobody(server: Server) -> None:
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.connect(server.address)
    slow.sendall(request("long"))
    assert server.says().startswith("You said")  # while the slow one waits to be read
    data = b""
    while b"[DONE]" not in data:
        data += slow.recv(4096)
        time.sleep(0.004)  # slower than it is written
    assert text_of(data) == LONG
    slow.close()


def closed_within(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_headers_and_bodies_that_do_not_come_and_readers_that_do_not_read_are_cut_off(server: Server) -> None:
    """The server here waits two seconds for each of them; the dripping clients never pause that long."""
    silent = server.connect(b"")
    dripping = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
    again = server.connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # a second request that drips
    again.recv(65536)
    body = server.connect(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                          b"Content-Length: 999\r\n\r\n")  # fmt: skip
    stuck = socket.socket()
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    stuck.connect(server.address)
    for _ in range(20):  # enough answers, and long ones, to fill every buffer on the way
        stuck.sendall(request("long", logprobs=True, top_logprobs=8))
    for _ in range(25):
        time.sleep(0.1)
        for sock, drip in ((dripping, b"x-a: b\r\n"), (again, b"G"), (body, b" ")):
            with suppress(OSError):  # it was cut off
                sock.sendall(drip)
    assert closed_within(silent, 0.5) and closed_within(dripping, 0.5) and closed_within(again, 0.5)
    assert b"408" in body.recv(65536).split(b"\r\n")[0]
    until(lambda: server.figure("liuli_answers_running ") == 0, 30)
    assert server.says().startswith("You said")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"x: yz\r\n" * 12_000 + b"\r\n", b"431"),
        (request("hi").replace(b"Content-Length: ", b"Content-Length: 9"), b""),  # less than was announced, then gone
    ],
)
def test_broken_http_ends_its_own_connection_only(server: Server, sent: bytes, status: bytes) -> None:
    with server.connect(b"") as sock:
        with suppress(ConnectionError):  # it hung up while we were still sending
            sock.sendall(sent)
        if status:
            assert status in sock.recv(65536).split(b"\r\n")[0]
    assert server.says().startswith("You said")


def test_what_follows_a_body_in_the_place_of_headers_has_an_end(server: Server) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server.connect(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n") as sock:
        with suppress(ConnectionError):  # it hung up while we were still sending
            for _ in range(200):
                sock.sendall(b"x: " + b"a" * 1_000 + b"\r\n")
        assert closed_within(sock, 0.5)
    assert server.says().startswith("You said")


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_thread_that_dies_fails_what_it_wrote_and_the_next_one_answers(server: Server, how: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(server.ask, "long") for _ in range(3)]
        until(lambda: server.figure("liuli_answers_running ") == 3)
        killed = server.ask(how)
        assert killed.status_code == 500
        for other in others:
            said = other.result()
            assert said.status_code == 500 and said.json()["error"]["type"] == "server_error"
    assert server.says().startswith("You said")
    assert server.figure("liuli_answers_running ") == server.figure("liuli_answers_waiting ") == 0


def test_a_voice_that_fails_harms_no_other_answer(server: Server) -> None:
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(server.ask, "long")
        assert [server.ask("break").status_code for _ in range(3)] == [500] * 3
        assert other.result().json()["choices"][0]["message"]["content"] == LONG


def test_a_thousand_connections_are_held_and_others_still_answered(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"this user may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1500, hard))
    before = server.figure("process_resident_memory_bytes")
    with ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        asked = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
        socks = [held.enter_context(server.connect(asked)) for _ in range(1000)]
        assert all(b"404 Not Found" in read_all(sock, b"}}") for sock in socks)
        time.sleep(2.5)  # longer than it waits for headers: these are between two requests
        assert server.figure("process_open_fds") > 1000
        assert server.says().startswith("You said")
        for sock in socks[::50]:
            sock.sendall(asked)
            assert b"404 Not Found" in read_all(sock, b"404 Not Found")
    until(lambda: server.figure("process_open_fds") < 100)
    assert server.figure("process_resident_memory_bytes") - before < 60e6
