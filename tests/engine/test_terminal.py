"""`liuli chat`: what a person types, and what comes back; in a pipe and on a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from liuli.assistant.voices import EngineVoice
from liuli.engine import Sampling
from liuli.model import save
from liuli.terminal import COMMANDS, Chat, help_text
from tests.engine.conftest import byte_tokenizer, make_model, scripted

T = byte_tokenizer()
GREEDY = Sampling(temperature=0, alternatives=3)
CALL = [T.call, *T.encode('calculator {"expression": "6*7"}'), T.end]
SCRIPT = {"6*7?": CALL, "42": T.encode("It is 42."), "Hi": T.encode("Hello 琉璃"), "two\nlines": T.encode("Read.")}


def talk(
    *lines: str | type[BaseException], as_json: bool = False, hook: Callable[[Chat], None] | None = None
) -> tuple[Chat, str]:
    """A chat in which these lines are typed; an exception stands for a key such as Ctrl-C."""
    left = list(lines)

    def read(prompt: str) -> str:
        if not left:
            raise EOFError
        line = left.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    out = io.StringIO()
    chat = Chat(
        EngineVoice(scripted(SCRIPT)), GREEDY, read, Console(file=out, highlight=False, width=200), as_json=as_json
    )
    if hook:
        hook(chat)
    chat.run()
    return chat, out.getvalue()


def roles(chat: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in chat.messages]


def test_answers_are_shown_and_remembered() -> None:
    chat, out = talk("Hi", "/new", "What is 6*7?")
    assert out == (
        'Hello 琉璃\nA new conversation. · 新的对话。\n⚙ calculator {"expression": "6*7"}\n  → 42\nIt is 42.\n'
    )
    assert roles(chat) == [("user", "What is 6*7?"), ("assistant", ""), ("tool", "42"), ("assistant", "It is 42.")]


@pytest.mark.parametrize(
    "lines", [("two\\", "lines"), ('"""two', 'lines"""'), ('"""', "two", "lines", '"""'), ('"""two', "lines")]
)
def test_a_message_may_have_many_lines(lines: tuple[str, ...]) -> None:
    chat, out = talk(*lines)
    assert (roles(chat)[0], out) == (("user", "two\nlines"), "Read.\n")


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    def interrupt_after_five(chat: Chat) -> None:
        model = chat.voice.engine.model
        answer, calls = model.answer, iter(range(1000))
        model.answer = lambda tokens: answer(tokens) if len(model.fed) != 6 or next(calls) else _interrupt()

    chat, out = talk("Hi", KeyboardInterrupt, "/temperature 0.5", hook=interrupt_after_five)
    assert out.startswith("Hello ⏹\n")
    assert "Ctrl-D leaves" in out and "temperature: 0.5" in out
    assert roles(chat) == [("user", "Hi"), ("assistant", "Hello")]


def _interrupt() -> int:
    raise KeyboardInterrupt


def test_why_shows_the_shares_of_the_words_asked_for() -> None:
    _, out = talk("Hi", "/why Hell")
    lines = out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["H", "e", "l", "l", "o"]
    assert all("100.0%" in line and line.count("·") == 1 for line in lines)
    assert "no such word" in talk("Hi", "/why xyz")[1]


def test_commands_change_the_chat_and_mistakes_are_explained() -> None:
    chat, out = talk(
        "/system Be kind.", "Hi", "/system", "/temperature warm", "/temperature -1", "/dance", "/help", "/quit", "Hi"
    )
    assert len(chat.messages) == 2 and chat.system == "Be kind."
    assert out.count("system: Be kind.") == 2
    assert "'warm' is no temperature" in out and "temperature cannot be -1.0" in out and "no command /dance" in out
    assert help_text() in out
    assert all(english in out and chinese in out for english, chinese in COMMANDS.values())


def test_a_question_too_long_is_refused_and_forgotten() -> None:
    chat, out = talk("x" * 300, "Hi")
    assert "context is 256" in out and roles(chat) == [("user", "Hi"), ("assistant", "Hello 琉璃")]


def test_json_gives_one_object_for_each_answer() -> None:
    _, out = talk("What is 6*7?", "Hi", as_json=True)
    first, second = map(json.loads, out.splitlines())
    assert (first["answer"], second["answer"], second["stopped_by"]) == ("It is 42.", "Hello 琉璃", "end")
    assert [message["role"] for message in first["messages"]] == ["assistant", "tool", "assistant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself."""
    place = tmp_path_factory.mktemp("model")
    model = make_model("qwen3", context=8192)
    with torch.no_grad():
        model.embedding.weight[list(T.stops)] = 0
    T.save(place / "tokenizer")
    save(model, place / "chat", tokenizer_folder=place / "tokenizer", provenance={"stage": "sft"})
    return place / "chat"


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "liuli", "chat", str(folder), "--device", "cpu", "--temperature", "0", *options]


def test_a_pipe_is_answered_whatever_bytes_come(folder: Path) -> None:
    asked = b"Hi\n/why\n" + b"\xff\xfe\n/temperature"
    done = subprocess.run(command(folder, "--max-tokens", "4"), input=asked, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\xe2\x94\x82") == 4  # a line of /why for each token
    assert done.stdout.endswith(b"temperature: 0\n")


def test_ctrl_c_and_ctrl_d_on_a_real_terminal(folder: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background inherit that it is ignored
        os.execv(sys.executable, command(folder, "--max-tokens", "8000"))
    seen, ended = b"", (0, 0)

    def wait_for(there: Callable[[bytes], bool], seconds: float = 120) -> None:
        """Read until it is there, and forget what was read."""
        nonlocal seen
        end = time.monotonic() + seconds
        while not there(seen):
            assert time.monotonic() < end and select.select([terminal], [], [], seconds)[0], seen[-500:]
            seen += os.read(terminal, 65536)
        seen = b""

    try:
        wait_for(lambda said: "› ".encode() in said)
        os.write(terminal, b"Hi\n")
        # the line typed comes back, then (the terminal's own codes apart) the answer begins
        wait_for(lambda said: re.sub(rb"\x1b\[[?\d;]*[a-zA-Z]", b"", said).partition(b"\n")[2].strip() != b"")
        os.write(terminal, b"\x03")
        wait_for(lambda said: "› ".encode() in said.partition("⏹".encode())[2])
        os.write(terminal, b"/temperature\n")
        wait_for(lambda said: "› ".encode() in said.partition(b"temperature: 0")[2])
        os.write(terminal, b"\x04")
        end = time.monotonic() + 120
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < end, "it does not leave"
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(ended[1]) == 0
    finally:
        if not ended[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)
