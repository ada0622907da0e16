"""What is served and to whom: the newest model of a run, this machine's pages only, one clear message on failure."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from liuli import cli, running
from liuli.cli import app as command
from liuli.errors import LiuliError, UsageError
from liuli.server.app import create_app
from liuli.server.runs import POINTS_AT_MOST, SAMPLES_AT_MOST, RunReader, models_in
from liuli.server.serve import bind, serve
from tests.server.scripted import LiveServer, make_model, make_run, set_status, until


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(make_model(tmp_path_factory.mktemp("models") / "tiny")) as server:
        yield server


@pytest.mark.parametrize(("name", "pauses"), [("serve", "4000"), ("chat", "4000"), ("build", "1000")])
def test_idle_threads_wait_longer_where_answers_are_written(
    monkeypatch: pytest.MonkeyPatch, name: str, pauses: str
) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["liuli", name])
    for given, found in ((None, pauses), ("77", "77")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.setenv("GOMP_SPINCOUNT", given or "")  # and put back after the test
        if not given:
            monkeypatch.delenv("GOMP_SPINCOUNT")
        cli.main()
        assert os.environ["GOMP_SPINCOUNT"] == found


def chat(live: LiveServer, text: str, **more: object) -> list[dict[str, object]]:
    said = httpx.post(f"{live.url}/api/chat", json={"messages": [{"role": "user", "content": text}], **more})
    assert said.status_code == 200, said.text
    return [json.loads(line) for line in said.text.splitlines()]


def test_chat_lines_hold_tokens_with_alternatives_and_tool_steps(live: LiveServer) -> None:
    events = chat(live, "calculate 6*7")
    assert [event["type"] for event in events[:3]] == ["start", "call", "result"]
    assert (events[1]["name"], events[2]["content"]) == ("calculator", "42")
    tokens = [event for event in events if event["type"] == "token"]
    assert "".join(token["text"] for token in tokens) == "The result is 42."
    assert all(len(token["alternatives"]) == 8 for token in tokens)
    assert (events[-1]["type"], events[-1]["stopped_by"]) == ("done", "end")


def test_an_answer_that_the_model_could_not_finish_ends_in_an_error(live: LiveServer) -> None:
    events = chat(live, "nan")
    assert [event["type"] for event in events] == ["start", "token", "token", "error"]
    assert events[-1]["code"] == "model_error"


def test_a_long_conversation_loses_its_oldest_turns_and_says_so(live: LiveServer) -> None:
    old = [{"role": "user", "content": "old " * 200}, {"role": "assistant", "content": "yes " * 200}] * 3
    messages = [{"role": "system", "content": "Be kind."}, *old, {"role": "user", "content": "history"}]
    said = httpx.post(f"{live.url}/api/chat", json={"messages": messages}).text.splitlines()
    assert json.loads(said[0])["left_out"] == 4
    assert [message.role for message in live.voice.asked[-1][0]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 400),
        ({"host": "127.0.0.1.nip.io"}, 400),
        ({"host": ""}, 400),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:8365"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_only_this_machines_pages_may_speak(live: LiveServer, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})
    every = {"content-type": "application/json", **headers}
    said = httpx.post(f"{live.url}/api/chat", content=body, headers=every)
    assert said.status_code == status
    assert {"x-request-id", "content-security-policy"} <= set(said.headers)  # of those that are refused, too


def test_a_conversation_of_thousands_of_turns_holds_nobody_up(real: LiveServer) -> None:
    said = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"hello {n}"} for n in range(1999)]
    began = time.monotonic()
    answer = httpx.post(f"{real.url}/api/chat", json={"messages": said, "max_tokens": 1}, timeout=60)
    seconds = time.monotonic() - began
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[0]["type"] == "start" and 1900 < events[0]["left_out"] < 1999
    assert seconds < 20  # a rendering takes 0.05 s, and there are a thousand turns to leave out


def test_limits_and_memory_are_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, object]] = []
    monkeypatch.setattr("liuli.server.serve", lambda path, **options: told.append(options))
    monkeypatch.setattr("liuli.assistant.elsewhere.voice_of", lambda *_, **how: told.append(how))
    for arguments in ([], ["--seconds-per-answer", "9", "--prefix-int8", "--replicas", "2"]):
        done = CliRunner().invoke(command, ["serve", str(make_model(tmp_path / str(len(arguments)))), *arguments])
        assert done.exit_code == 0, done.output
        told[-1]["load"](tmp_path)  # type: ignore[operator]
    assert [told[at]["seconds"] for at in (0, 2)] == [0, 9]
    assert [(told[at]["prefix_int8"], told[at]["replicas"]) for at in (1, 3)] == [(False, 0), (True, 2)]


def test_every_answer_carries_the_policy_and_no_file_outside_is_served(live: LiveServer) -> None:
    for path in ("/", "/health", "/nowhere", "/assets/..%2f..%2fapp.py", "/assets/../../app.py", "/report.html"):
        said = httpx.get(live.url + path)
        assert "default-src 'none'" in said.headers["content-security-policy"]
        assert "ASGI" not in said.text
        assert said.status_code == (200 if path in ("/", "/health") else 404), path


def test_a_query_names_no_file(live: LiveServer) -> None:
    icon = httpx.get(f"{live.url}/icon.svg")
    assert icon.text.lstrip().startswith("<svg")
    for name in ("name", "path", "file"):
        assert httpx.get(f"{live.url}/icon.svg", params={name: __file__}).content == icon.content


def test_health_and_methods(live: LiveServer) -> None:
    assert httpx.get(f"{live.url}/health").json() == {"status": "ok", "model": "tiny", "answers": 0}
    assert httpx.get(f"{live.url}/api/run").json()["kind"] == "model"
    wrong = httpx.delete(f"{live.url}/v1/models")
    assert (wrong.status_code, set(wrong.json()["error"])) == (405, {"message", "type", "param", "code"})
    assert wrong.headers["allow"] == "GET"


def test_a_run_serves_its_newest_model_and_waits_for_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        asked = {"messages": [{"role": "user", "content": "which"}]}
        early = httpx.post(f"{live.url}/api/chat", json=asked)
        assert (early.status_code, early.json()["error"]["code"]) == (503, "still_learning")
        assert httpx.get(f"{live.url}/v1/models").json()["data"] == []

        def answers() -> str:
            said = httpx.post(f"{live.url}/v1/chat/completions", json=asked)
            return said.json()["choices"][0]["message"]["content"]

        for newest in (
            "snapshots/pretrain-00000300",
            "snapshots/pretrain-00000900",
            "pretrain",
            "snapshots/chat-00000100",
            "chat",
        ):
            make_model(run / newest)
            assert answers() == Path(newest).name
        make_model(run / "snapshots/pretrain-00001200")  # an earlier stage's: not newer
        assert answers() == "chat"
        assert len(live.voices) == 5  # each was loaded once


def test_half_written_folders_are_not_models(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    make_model(run / ".tmp-chat")
    (make_model(run / "pretrain") / "model.safetensors").unlink()
    make_model(run / "snapshots" / ".tmp-pretrain-00000300")
    assert models_in(run) == []


def test_the_run_is_read_on_as_it_grows_and_thinned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop", snapshots=2)
    reader = RunReader(run)
    seen = reader.read()
    assert [curve["stage"] for curve in seen["curves"]] == ["pretrain"]
    assert seen["curves"][0]["points"][-1]["step"] > 990 and len(seen["samples"]) == 2
    with open(run / "log.jsonl", "a") as log:  # the torn line is completed, then many more come
        log.write('ain"}\n')
        for step in range(1000, 20_000):
            log.write(
                json.dumps({"time": 2e9 + step, "stage": "pretrain", "step": step, "loss": 1.0, "bpb": None}) + "\n"
            )
        log.write(json.dumps({"time": 3e9, "stage": "chat", "step": 0, "loss": float("nan")}) + "\n")
    with open(run / "samples.jsonl", "a") as samples:
        for step in range(200):
            samples.write(json.dumps({"time": 0, "stage": "pretrain", "step": step, "answers": []}) + "\n")
    seen = reader.read()
    points = seen["curves"][0]["points"]
    assert len(points) <= POINTS_AT_MOST and points[0]["step"] == 0 and points[-1]["step"] > 19_900
    assert len(seen["samples"]) == SAMPLES_AT_MOST and seen["samples"][-1]["step"] == 199
    (run / "log.jsonl").write_text(json.dumps({"time": 1, "stage": "tokenizer", "step": 1, "loss": 1.0}) + "\n")
    assert [curve["stage"] for curve in reader.read()["curves"]] == ["tokenizer"]  # the run began anew


def test_a_report_is_served_in_a_sandbox(tmp_path: Path) -> None:
    run = make_run(tmp_path / "laptop")
    set_status(run, state="done")
    (run / "report.html").write_text("<h1>Report</h1>")
    with LiveServer(run) as live:
        said = httpx.get(f"{live.url}/report.html")
    assert (said.text, said.headers["content-security-policy"].split(";")[0]) == (
        "<h1>Report</h1>",
        "sandbox allow-scripts",
    )


def test_what_is_not_a_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model"):
        create_app(tmp_path / "nothing")
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(UsageError, match="neither"):
        create_app(tmp_path)
    (make_model(tmp_path / "half") / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"lacks tokenizer\.json"):
        create_app(tmp_path / "half")
    (tmp_path / "empty").mkdir()
    create_app(tmp_path / "empty")  # a build may begin there any moment


def test_a_taken_port_is_one_clear_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LiuliError, match="already taken"):
            bind("127.0.0.1", port)
        said = liuli_serve(make_model(tmp_path / "tiny"), port)
        _, err = said.communicate(timeout=60)
    assert said.returncode == 1
    assert err.startswith(f"liuli: Port {port} is already taken.") and "--port" in err
    assert "Traceback" not in err and len(err.splitlines()) == 3


def liuli_serve(path: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "liuli", "serve", str(path), "--port", str(port)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_damaged_model_is_told_before_the_first_question(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(LiuliError) as error:
        serve(make_model(tmp_path / "tiny"), port=0, ready=said.append)
    assert str(tmp_path) in str(error.value) and not said


def test_ctrl_c_ends_the_server_quietly(tmp_path: Path) -> None:
    said = liuli_serve(make_run(tmp_path / "laptop"), 0)
    address = said.stdout.readline().split()[1]
    until(lambda: httpx.get(f"{address}/health").status_code == 200, 60)
    said.send_signal(signal.SIGINT)
    out, err = said.communicate(timeout=60)
    assert (said.returncode, out, err) == (0, "", "")


def test_a_build_that_is_killed_takes_its_page_with_it_and_leaves_the_port_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = make_run(tmp_path / "laptop")
    build = f"from liuli.running import *; open_page(Path({str(run)!r}), {port}); os.kill(os.getpid(), signal.SIGKILL)"
    env = os.environ | {"BROWSER": "true", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", build], env=env, stdout=subprocess.DEVNULL, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    until(lambda: not listens(port), 30)


SLOW_START = """#!{python}
import pathlib, socket, sys, time
door = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
time.sleep(1)
pathlib.Path({ready!r}).touch()
caller = door.accept()[0]
caller.recv(1000)
caller.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
"""


def test_a_build_begins_when_its_page_has_started_not_when_its_port_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build times the machine: beside a page that still starts it planned half of the lessons."""
    ready, page = tmp_path / "ready", tmp_path / "page"
    page.write_text(SLOW_START.format(python=sys.executable, ready=str(ready)))
    page.chmod(0o755)
    monkeypatch.setattr("webbrowser.open", lambda url: None)
    monkeypatch.setattr("liuli.running.sys.executable", str(page))
    started = running.open_page(tmp_path / "run", 0)  # any port that is free
    began_in_time = ready.exists()
    started.wait(60)
    assert began_in_time


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_closing_the_server_ends_running_answers(tmp_path: Path) -> None:
    with LiveServer(make_model(tmp_path / "slow"), pause=0.02) as live:
        url = f"{live.url}/api/chat"
        with httpx.stream("POST", url, json={"messages": [{"role": "user", "content": "long"}]}) as said:
            next(said.iter_lines())
    until(lambda: live.voice.closed == 1)
