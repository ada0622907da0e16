"""One whole build with a budget of a minute, from nothing to a chat model, watched and used through the page."""

from __future__ import annotations

import json
import os
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
    assert figures["asked"]["asked"] > 100 and figures["headline"]
    assert {stage["name"] for stage in status(run)["stages"] if stage["state"] == "done"} >= {"pretrain", "chat"}
    learned = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in learned if line.get("stage") == "pretrain" and "loss" in line]
    assert losses[-1] < 0.8 * losses[0]

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

    from liuli.build import TITLES, read_recipe, recipe_toml

    run = tmp_path / "laptop"
    run.mkdir()
    (run / "recipe.toml").write_text(recipe_toml(replace(read_recipe(RECIPE), minutes=1.0)))
    for name in TITLES:
        (run / name).mkdir(exist_ok=True)
    (run / "eval.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    process, _, _ = build()
    wait_for(lambda: status(run) == {} and process.poll() is None, 5, process)
    time.sleep(8)
    assert process.poll() is None and not (run / "log.jsonl").exists()
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items() if path.is_dir() and path != run)
