"""A voice that says what it is told, and a run folder that looks like a build's: for tests of server and page."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from liuli.assistant.voices import Ended
from liuli.engine import Alternative, Sampling, Token, calculate
from liuli.server.app import create_app
from liuli.text import Message, ToolCall

MARKDOWN = """Here is **bold text** and a list:

- first *item*
- second `code`

| Planet | Moons |
|---|---|
| Earth | 1 |

```python
print("1 < 2")
```

<script>window.hacked = 1</script><img src=x onerror="window.hacked=1"> and [a link](javascript:window.hacked=1).
"""


class ScriptedVoice:
    """Answers by rule. pause: seconds a token takes. `closed` counts answers that were stopped from outside."""

    blocks = False

    def __init__(self, path: Path, pause: float = 0.0, context: int = 512) -> None:
        self.path, self.pause, self.context = path, pause, context
        self.closed = 0
        self.asked: list[tuple[list[Message], Sampling, list[str]]] = []

    def prompt_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message.content.split()) + 2 for message in messages)

    def bytes_of(self, token: int) -> bytes:
        return b""

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, tools: Sequence[str], declared: Sequence[str] = ()
    ) -> Generator[Token | Message | Ended | None, None, None]:
        self.asked.append((list(messages), sampling, list(tools)))
        question = messages[-1].content
        try:
            if question == "break":
                yield from tokens("half an", 2, self.pause)
                raise RuntimeError("the engine broke")
            if question == "nan":
                yield from tokens("half an", 2, self.pause)
                yield Token(0, "", math.nan, stopped_by="error")
                yield Ended("error", 3)
                return
            if question.startswith("calculate ") and "calculator" in tools:
                call = ToolCall(
                    name="calculator",
                    arguments=json.dumps({"expression": question.removeprefix("calculate ")}),
                    id="c1",
                )
                yield Message(role="assistant", content="", tool_calls=(call,))
                result = calculate(question.removeprefix("calculate "))
                yield Message(role="tool", content=result, tool_call_id="c1")
                text = f"The result is {result}."
            elif question.startswith("call "):  # of a tool that the client declared
                if "calculator" in tools:  # after one that the server runs
                    yield from tokens("let me see", 3, self.pause)
                    yield Message("assistant", "let me see", (ToolCall("calculator", '{"expression": "1+1"}', "c0"),))
                    yield Message("tool", "2", tool_call_id="c0")
                name, _, arguments = question.removeprefix("call ").partition(" ")
                assert name in declared
                yield from tokens("one moment", 3, self.pause)
                yield Message(role="assistant", content="one moment", tool_calls=(ToolCall(name, arguments, "call_0"),))
                yield Ended("call", 33 if "calculator" in tools else 22)
                return
            elif question == "markdown":
                text = MARKDOWN
            elif question == "long":
                text = " ".join(f"word{i}" for i in range(400))
            elif question == "which":
                text = self.path.name
            elif question == "history":
                text = "|".join(f"{m.role}:{m.content}" for m in messages)
            else:
                text = f"You said 你好 {question} at {len(self.asked)}."
            count = 0
            for token in tokens(text, sampling.max_tokens, self.pause, sampling.alternatives):
                count += token is not None
                yield token
            assert token is not None
            yield Ended(token.stopped_by or "end", count)
        except GeneratorExit:
            self.closed += 1
            raise


def pieces(text: str) -> list[str]:
    """A text in pieces of four characters: borders fall inside words and inside markdown signs."""
    return [text[i : i + 4] for i in range(0, len(text), 4)]


def tokens(text: str, at_most: int, pause: float, alternatives: int = 0) -> Generator[Token | None, None, None]:
    """The text as tokens, a turn each and each as likely as 0.6, and a last token without text that ends it."""
    shares = [0.6, 0.15, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002][:alternatives]
    for i, piece in enumerate([*pieces(text), ""]):
        if pause:
            time.sleep(pause)
        names = [piece or "<|end|>", " else", "\n", " 别的", " so", " it", " may", " be"]
        others = tuple(Alternative(1000 * n + i, names[n], math.log(p)) for n, p in enumerate(shares))
        over = "length" if i + 1 == at_most else None if piece else "end"
        yield None
        yield Token(i, piece, math.log(0.6), others, stopped_by=over)
        if over:
            return


def make_model(path: Path) -> Path:
    """A folder that looks like a model's."""
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (path / name).write_text('{"max_position_embeddings": 512}' if name == "config.json" else "{}")
    return path


def make_run(path: Path, *, snapshots: int = 6, state: str = "running") -> Path:
    """A run folder in the middle of its pretraining: status, log, samples; no model yet."""
    path.mkdir(parents=True)
    now = time.time()
    stages = [
        {"name": "tokenizer", "title": "Tokenizer", "state": "done", "seconds": 21.0, "share": 0.05},
        {"name": "pretrain", "title": "Pretraining", "state": "running", "seconds": 160.0, "share": 0.6},
        {"name": "chat", "title": "Chat", "state": "waiting", "seconds": 0, "share": 0.3},
        {"name": "evaluate", "title": "Evaluation", "state": "waiting", "seconds": 0, "share": 0.05},
    ]
    set_status(path, state=state, stages=stages)
    with open(path / "log.jsonl", "w") as log:
        log.write(json.dumps({"time": now - 200, "event": "stage", "stage": "pretrain"}) + "\n")
        for step in range(1000):
            bpb = 1.1 + 5 * math.exp(-step / 120) + 0.06 * math.sin(step * 1.7)
            line = {"time": now - 180 + step * 0.16, "stage": "pretrain", "step": step, "progress": step / 2400}
            log.write(json.dumps({**line, "loss": bpb * 2.1, "bpb": bpb, "tokens": step * 4096}) + "\n")
        log.write('{"time": 1, "stage": "pretr')  # a torn last line
    with open(path / "samples.jsonl", "w") as samples:
        for i in range(snapshots):
            said = "the the of the" if i == 0 else f"Paris is the capital of France. ({i})"
            answers = [
                {"prompt": "What is the capital of France?", "language": "en", "answer": said},
                {
                    "prompt": "法国的首都是哪里？",
                    "language": "zh",
                    "answer": "的的的是" if i == 0 else f"法国的首都是巴黎。（{i}）",
                },
            ]
            line = {"time": now - 170 + i * 28, "stage": "pretrain", "step": 150 * (i + 1), "progress": i / 10}
            samples.write(json.dumps({**line, "answers": answers}) + "\n")
    return path


def set_status(path: Path, **change: object) -> None:
    """Rewrite status.json with some keys changed."""
    file = path / "status.json"
    before = json.loads(file.read_text()) if file.exists() else {
        "state": "running", "stage": "pretrain", "stages": [], "progress": 0.42, "seconds_left": 505, "step": 1000,
        "steps": 2400, "loss": 2.33, "bpb": 1.104, "tokens_per_s": 25310.4, "peak_share": 0.47, "message": "",
    }  # fmt: skip
    file.write_text(json.dumps({**before, "updated": time.time(), **change}))


class LiveServer:
    """The application on a real socket, in a thread."""

    def __init__(self, path: Path, app: FastAPI | None = None, **options: object) -> None:
        self.voices: list[ScriptedVoice] = []

        def load(folder: Path) -> ScriptedVoice:
            self.voices.append(ScriptedVoice(folder, **options))  # type: ignore[arg-type]
            return self.voices[-1]

        config = uvicorn.Config(
            app or create_app(path, load=load), port=0, log_level="error", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> LiveServer:
        self.thread.start()
        until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=10)

    @property
    def voice(self) -> ScriptedVoice:
        return self.voices[-1]


def until(true: object, seconds: float = 60.0) -> None:
    """Wait for a condition; fails when it does not come."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)
