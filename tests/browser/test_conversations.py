"""The conversations that a browser keeps: listed, opened again, deleted; and long ones, which stay quick."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_chat import ask_to_the_end
from tests.server.scripted import LiveServer, make_model

pytestmark = pytest.mark.browser
Open = Callable[..., Page]
HOUR = 3_600_000


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(make_model(tmp_path_factory.mktemp("models") / "tiny"), pause=0.005) as server:
        yield server


def turn(question: str, words: int = 3, **more: object) -> dict[str, object]:
    """A turn as the page keeps it."""
    tokens = [{"id": n, "text": f"word{n} ", "logprob": -0.5, "alternatives": []} for n in range(words)]
    answer = {"parts": [{"kind": "text", "tokens": tokens}], "state": "done", "tokens": words, "stoppedBy": "end"}
    return {"question": question, "answers": [answer], "shown": 0, **more}


def keep(page: Page, **conversations: list[dict[str, object]]) -> None:
    """What the browser keeps, the newest first."""
    for name, turns in conversations.items():
        page.evaluate("([name, text]) => { localStorage['liuli.' + name] = text }", [name, json.dumps(turns)])
    page.evaluate("names => { localStorage['liuli.conversations'] = names }", json.dumps(list(conversations)))
    page.evaluate("sessionStorage.clear()")


def kept(page: Page) -> list[str]:
    """The first questions of what the browser keeps."""
    names = json.loads(page.evaluate("localStorage['liuli.conversations']"))
    assert not page.evaluate(
        "names => Object.keys(localStorage).filter(key => /turns/.test(key) && !names.includes(key.slice(6)))", names
    )
    return [json.loads(page.evaluate("name => localStorage['liuli.' + name]", name))[0]["question"] for name in names]


@pytest.mark.parametrize("width", [1280, 360])
def test_every_kept_conversation_is_a_click_away_and_can_be_deleted(
    live: LiveServer, open_page: Open, width: int
) -> None:
    page = open_page(live.url, viewport={"width": width, "height": 700})
    now = page.evaluate("Date.now()")
    keep(
        page,
        turnsB=[turn("second " * 30, time=now)],
        turnsA=[turn("first"), turn("more")],
        turns=[turn("oldest", time=now - 100 * HOUR)],
    )
    page.reload()
    page.get_by_role("button", name="Conversations").click()
    dialog = page.get_by_role("dialog", name="Conversations")
    rows = dialog.get_by_role("listitem")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("second second")
    assert rows.nth(1).inner_text() == "first"  # kept before times were
    today, day = (row.locator("small").inner_text() for row in (rows.nth(0), rows.nth(2)))
    assert ":" in today and ":" not in day
    box = dialog.bounding_box()
    assert (
        box["x"] >= 0
        and box["x"] + box["width"] <= width
        and page.evaluate("document.documentElement.scrollWidth") <= width
    )
    rows.nth(2).get_by_role("button", name="oldest").first.click()
    expect(dialog).to_have_count(0)
    expect(page.locator(".bubble")).to_have_text(["oldest"])

    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Delete: first").click()
    expect(rows).to_have_count(3)  # the first press asks
    page.get_by_role("button", name="Delete?").click()
    expect(rows).to_have_count(2)
    assert kept(page) == ["second " * 30, "oldest"]
    page.get_by_role("button", name="Delete: oldest").click()  # the one that is open
    page.get_by_role("button", name="Delete?").click()
    expect(rows).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".bubble")).to_have_count(0)
    ask_to_the_end(page, "newest")
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("button", name="Delete all 2?").click()
    expect(dialog).to_contain_text("Nothing is kept yet.")
    page.keyboard.press("Escape")
    page.reload()
    assert kept(page) == []
    expect(page.get_by_role("button", name="Conversations")).to_have_count(0)
    expect(page.get_by_text("What would you like to ask?")).to_be_visible()


def test_the_list_of_conversations_is_walked_by_keyboard(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url, locale="zh-CN")
    keep(page, turnsB=[turn("第二个")], turnsA=[turn("第一个")])
    page.reload()
    page.get_by_role("button", name="对话记录").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="第二个").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text(["第一个"])
    expect(page.get_by_role("textbox", name="消息")).to_be_focused()  # it takes the focus last of all
    page.get_by_role("button", name="对话记录").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").locator(":focus")).to_be_visible()  # it is open
    for key in ("Tab", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("button", name="确认删除？")).to_be_focused()
    page.keyboard.press("Enter")
    assert kept(page) == ["第一个"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".bubble")).to_have_text(["第一个"])


def test_a_deleted_conversation_that_goes_on_in_another_tab_is_kept(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    other = page.context.new_page()
    other.goto(live.url)
    expect(other.locator(".bubble")).to_have_text(["hello"])
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Delete: hello").click()
    page.get_by_role("button", name="Delete?").click()
    ask_to_the_end(other, "second")
    other.reload()
    expect(other.locator(".bubble")).to_have_text(["hello", "second"])


def test_a_conversation_of_hundreds_of_messages_is_kept_whole_and_written_on_as_quickly_as_a_new_one(
    live: LiveServer, open_page: Open
) -> None:
    page = open_page(live.url)
    keep(page, turns=[turn(f"question {n}", words=60) for n in range(300)])
    page.reload()
    expect(page.locator(".foot")).to_have_count(300)
    expect(page.locator(".foot").last).to_be_in_viewport()
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable")

    def script() -> float:
        """Seconds of script for an answer of a hundred tokens that comes in half a second."""
        before, after = (
            {each["name"]: each["value"] for each in tools.send("Performance.getMetrics")["metrics"]} for _ in asked()
        )
        return after["ScriptDuration"] - before["ScriptDuration"]

    def asked() -> Iterator[None]:
        yield
        ask_to_the_end(page, "long")
        yield

    long = script()
    page.reload()
    expect(page.locator(".bubble")).to_have_text([*(f"question {n}" for n in range(300)), "long"])
    assert page.locator(".words").first.inner_text().split() == [f"word{n}" for n in range(60)]
    page.get_by_role("button", name="New chat").click()
    assert long < 3 * script()  # seven tenths of it, measured: the new one is laid out anew
