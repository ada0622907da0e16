"""One whole build with a budget of a minute, from nothing to a chat model, watched and used through the page."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "laptop.toml"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str, Path]]]:
    """Start `liuli build --serve` in a folder of its own; whatever still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], str, Path]:
        port, run = free_port(), tmp_path / "laptop"
        command = [sys.executable, "-m", "liuli", "build", str(RECIPE), "--minutes", "1", "--out", str(run)]
        environment = os.environ | {"BROWSER": "true"}  # no window of its own
        process = subprocess.Popen(
            [*command, "--serve", "--port", str(port), "--quiet"],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process, f"http://127.0.0.1:{port}", run

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(10)


def status(run: Path) -> dict[str, object]:
    try:
        return json.loads((run / "status.json").read_text())  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return {}


def wait_for(what: Callable[[], object], seconds: float, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.3)


def test_a_minute_from_nothing_to_a_chat_in_the_browser(
    build: Callable[[], tuple[subprocess.Popen[str], str, Path]], open_page: Callable[..., Page]
) -> None:
    process, url, run = build()
    wait_for(lambda: status(run).get("stages"), 60, process)
    page = open_page(url)
    expect(page.get_by_role("progressbar")).to_be_visible()

    # it can be asked while it learns, and says something
    wait_for(lambda: any(run.glob("snapshots/*/config.json")) or (run / "pretrain").exists(), 180, process)
    page.get_by_role("textbox", name="Message").fill("What is the capital of France?")
    page.keyboard.press("Enter")
    expect(page.locator(".words").first).to_be_visible(timeout=60_000)

    # it ends by itself, with a model, figures and a report
    wait_for(lambda: status(run).get("state") == "done" and (run / "report.html").exists(), 400, process)
    expect(page.get_by_role("link", name="Open the report")).to_be_visible(timeout=30_000)
    figures = json.loads((run / "eval.json").read_text())
    assert figures["asked"]["asked"] >= 64 and figures["headline"]
    assert all(0 < figures["bits"][language]["per_byte"] < 8 for language in ("en", "zh"))
    # three minutes for a budget of one: a slow day keeps that, a budget that nobody watches does not
    plan = json.loads((run / "plan.json").read_text())
    assert sum(plan["seconds"].values()) < 180
    assert {stage["name"] for stage in status(run)["stages"] if stage["state"] == "done"} >= {"pretrain", "chat"}
    learned = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = {line["stage"]: line["loss"] for line in learned if "loss" in line}
    assert losses.keys() == {"pretrain", "chat", "reward"}
    assert "not_aligned" in plan or "versus" in figures  # a reward model no better than chance is not followed
    assert losses["chat"] < 0.9 * math.log(plan["vocab_size"])  # chance; a slow day has time for a few steps only

    # the finished model answers too, and each of its words can be opened
    page.get_by_role("button", name="New chat").first.click()
    page.get_by_role("textbox", name="Message").fill("Hello!")
    page.keyboard.press("Enter")
    expect(page.locator(".word").first).to_be_visible(timeout=60_000)
    page.locator(".word").first.click()
    expect(page.locator(".inspector")).to_be_visible()


def test_a_second_start_reuses_what_is_built(
    build: Callable[[], tuple[subprocess.Popen[str], str, Path]], tmp_path: Path
) -> None:
    from dataclasses import replace

    from liuli.build import TITLES
    from liuli.recipe import read_recipe, recipe_toml

    run = tmp_path / "laptop"
    run.mkdir()
    (run / "recipe.toml").write_text(recipe_toml(replace(read_recipe(RECIPE), minutes=1.0)))
    for name in TITLES:
        (run / name).mkdir(exist_ok=True)
    (run / "eval.json").write_text("{}")
    (run / "report.html").write_text("<p>A report.")
    (run / "status.json").write_text('{"state": "done", "stages": []}')
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process, _, _ = build()
    said, end = b"", time.monotonic() + 120
    while b"The model is ready" not in said:
        assert process.stderr and select.select([process.stderr], [], [], end - time.monotonic())[0], said
        said += (more := os.read(process.stderr.fileno(), 65536))
        assert more, said
    assert process.poll() is None and not (run / "log.jsonl").exists()
    same = {path for path, time_ns in before.items() if path.stat().st_mtime_ns == time_ns}
    assert before.keys() - same <= {run, run / "recipe.toml"}
