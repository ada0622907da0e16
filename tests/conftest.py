"""Real Chromium for every test that looks at a page; sockets for every test that stands in for a server."""

from __future__ import annotations

import inspect
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

# A machine may be busy with other things.
expect.set_options(timeout=30_000)
inspect.signature(httpx.get).parameters["timeout"].default.read = 60.0  # one object, the default of all its functions

PAGE = Path(__file__).parents[1] / "src" / "liuli" / "server" / "page"

NO_CHROMIUM = """no Chromium here, which the tests of the page need: install it (Debian: apt install chromium),
or set LIULI_CHROMIUM to its path, or set LIULI_NO_BROWSER=1 to leave these tests out"""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several processes the long ones first, or one waits at the end for the other's."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def chromium() -> str | None:
    """The system's Chromium, or the one LIULI_CHROMIUM names."""
    named = [os.environ.get("LIULI_CHROMIUM"), "/usr/bin/chromium", "chromium-browser", "google-chrome"]
    return next((found for name in named if name and (found := shutil.which(name))), None)


def needed_chromium() -> str:
    """Fails without one rather than skip: nobody reads that a test was skipped, and the page would go untested."""
    found = chromium()
    if found is None:
        (pytest.skip if os.environ.get("LIULI_NO_BROWSER") else pytest.fail)(NO_CHROMIUM)
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = needed_chromium()
    if not (PAGE / "index.html").is_file():
        pytest.fail("the page is not built: run `python hatch_build.py`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a new, empty profile; a test fails on any error in the page's console."""
    contexts = []
    problems: list[str] = []

    def open_it(url: str, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **options})
        contexts.append(context)
        # Chromium begins and ends interception beside the requests already on their way: a test's own route in an open
        # page may miss one, or hold it for ever. Where interception is on from the start, a route is there at once.
        context.route("**/intercepted-from-the-start", lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: said.type == "error" and problems.append(said.text))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    # a test's own server may have ended before its page, which asks for news every second
    expected = ("503", "ERR_CONNECTION_REFUSED")
    assert not [problem for problem in problems if not any(known in problem for known in expected)]


class Listening(ThreadingHTTPServer):
    """Takes as many connections at once as a test may open."""

    daemon_threads, request_queue_size = True, 256


@pytest.fixture
def listen() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Starts servers that answer by a handler; gives their addresses."""
    started: list[Listening] = []

    def start(handler: type[BaseHTTPRequestHandler]) -> str:
        server = Listening(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
