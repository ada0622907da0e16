"""Judging in real Chromium: compare, rank by letters and by dragging, edit, give a thumb; in both languages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from liuli.server.app import create_app
from tests.server.scripted import LiveServer, ScriptedVoice, make_model

pytestmark = pytest.mark.browser
Open = Callable[..., Page]
# The second half of a double click, or of a key that is struck twice, the moment the next answers are there.
AND_AGAIN = """(act => new Promise(done => {
    act();
    const gone = () => document.querySelector(".label-card") === null;
    let waiting = gone();
    const watch = new MutationObserver(() => {
        if (waiting && !gone()) { watch.disconnect(); act(); done(); }
        waiting = gone();
    });
    watch.observe(document.body, {childList: true, subtree: true});
}))"""
EVIL = '<img src=x onerror="window.hacked=1"> {}'


@pytest.fixture
def live(tmp_path: Path) -> LiveServer:
    (tmp_path / "prompts.txt").write_text("\n".join(EVIL.format(n) for n in range(9)))
    model = make_model(tmp_path / "tiny")
    options = {"store": tmp_path / "judgements.sqlite", "prompts": tmp_path / "prompts.txt"}
    return LiveServer(model, create_app(model, load=ScriptedVoice, **options))


def export(live: LiveServer, kind: str) -> list[dict]:
    said = httpx.get(f"{live.url}/api/label/export", params={"kind": kind})
    return [json.loads(line) for line in said.text.splitlines()]


def texts(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".label-said").all_inner_texts()]


def contents(row: dict) -> tuple[str, str]:
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def shown(page: Page, number: int = 2) -> list[str]:
    """The answers of a new task, when there was time to read them: before that nothing is judged."""
    expect(page.locator(".label-card")).to_have_count(number)
    page.wait_for_timeout(550)
    return texts(page)


def count(page: Page, kind: str) -> Locator:
    return page.locator(f"[data-count={kind}] dd")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_person_compares_ranks_edits_and_gives_a_thumb(live: LiveServer, open_page: Open, language: str) -> None:
    def word(english: str, chinese: str) -> str:
        return english if language == "en" else chinese

    with live:
        page = open_page(f"{live.url}/#/label", locale="en-US" if language == "en" else "zh-CN")
        cards = page.locator(".label-card")
        page.get_by_role("textbox", name=word("Your name", "你的名字")).fill("Ada 1")  # a 1 typed there judges nothing
        first, second = shown(page)
        assert first != second and "onerror" in first and page.locator(".label-page img").count() == 0
        page.locator(".label-head h2").click()
        page.keyboard.press("2")
        expect(count(page, "choice")).to_have_text("1")
        shown(page)
        (row,) = export(live, "dpo")
        assert contents(row) == (second, first) and row["who"] == "Ada 1"
        page.keyboard.press("0")
        expect(count(page, "skipped")).to_have_text("1")
        first, second = shown(page)
        page.get_by_role("button", name=word("This one is better", "这个更好")).first.click()
        expect(count(page, "choice")).to_have_text("2")
        assert contents(export(live, "dpo")[-1]) == (first, second)

        expect(cards).to_have_count(2)
        first, _ = texts(page)
        page.get_by_role("button", name=word("Edit", "编辑")).first.click()
        box = page.get_by_role("textbox", name=word("Your version of the answer", "你改写的回答"))
        expect(box).to_have_value(first)
        expect(page.get_by_role("button", name=word("Save", "保存"))).to_be_disabled()  # nothing was changed yet
        box.fill("<b>1 + 1 = 2</b>")
        page.get_by_role("button", name=word("Save", "保存")).click()
        expect(page.locator(".chip")).to_have_text(word("your version is kept", "已保存你的版本"))
        expect(count(page, "edit")).to_have_text("1")
        assert contents(export(live, "dpo")[-1]) == ("<b>1 + 1 = 2</b>", first)

        # what is kept is seen below the model's own words, and can be corrected
        kept = page.locator(".label-kept")
        expect(kept).to_contain_text("<b>1 + 1 = 2</b>")
        expect(cards.first).to_contain_text(first)
        page.get_by_role("button", name=word("Edit", "编辑")).first.click()
        expect(box).to_have_value("<b>1 + 1 = 2</b>")
        box.fill("2")
        page.get_by_role("button", name=word("Save", "保存")).click()
        expect(kept.locator(".label-said")).to_have_text("2")
        assert [contents(row)[0] for row in export(live, "dpo")].count("<b>1 + 1 = 2</b>") == 0

        page.get_by_role("button", name=word("Rank several", "多个排序")).click()
        a, b, c, d = shown(page, 4)
        keep = page.get_by_role("button", name=word("Keep this order", "确定排序"))
        page.locator(".label-head h2").click()
        for letter in "cab":
            expect(keep).to_be_disabled()
            page.keyboard.press(letter)  # the fourth is the last without a click
        assert texts(page) == [c, a, b, d]
        page.keyboard.press("Enter")
        expect(count(page, "ranking")).to_have_text("1")
        rows = export(live, "dpo")[-6:]
        assert [contents(row) for row in rows] == [(c, a), (c, b), (c, d), (a, b), (a, d), (b, d)]
        a, b, c, d = shown(page, 4)
        page.locator("li").nth(3).drag_to(page.locator("li").nth(0))
        assert texts(page) == [d, a, b, c]
        keep.click()
        expect(count(page, "ranking")).to_have_text("2")
        assert contents(export(live, "dpo")[-6]) == (d, a)

        page.get_by_role("button", name=word("Close", "关闭")).click()
        page.get_by_role("textbox", name=word("Message", "消息")).fill("hello")
        page.keyboard.press("Enter")
        good, bad = (
            page.get_by_role("button", name=word(*names))
            for names in (("Good answer", "回答得好"), ("Bad answer", "回答得不好"))
        )
        good.click()
        expect(good).to_have_attribute("aria-pressed", "true")
        bad.click()
        expect(bad).to_have_attribute("aria-pressed", "true")
        expect(good).to_have_attribute("aria-pressed", "false")
        (thumb,) = export(live, "kto")
        assert (thumb["prompt"], thumb["label"]) == ([{"role": "user", "content": "hello"}], False)
        page.reload()
        expect(bad).to_have_attribute("aria-pressed", "true")  # and it is remembered
        bad.click()
        expect(bad).to_have_attribute("aria-pressed", "false")
        assert export(live, "kto") == []  # the same again takes it back
        assert page.evaluate("window.hacked") is None


def test_a_judgement_that_could_not_be_kept_stays_on_the_page(live: LiveServer, open_page: Open) -> None:
    with live:
        page = open_page(f"{live.url}/#/label")
        before = shown(page)
        page.route("**/api/label/judge", lambda route: route.fulfill(status=503, body="{}"))
        page.keyboard.press("1")
        expect(page.get_by_role("alert")).to_contain_text("This could not be kept")
        assert texts(page) == before
        page.unroute("**/api/label/judge")
        page.get_by_role("button", name="Try again").click()
        expect(count(page, "choice")).to_have_text("1")
        assert [contents(row) for row in export(live, "dpo")] == [tuple(before)]


def test_only_answers_that_were_read_are_judged_and_no_edit_is_lost(live: LiveServer, open_page: Open) -> None:
    with live:
        page = open_page(live.url)
        page.get_by_role("button", name="Judge answers").click()
        shown(page)
        better = page.get_by_role("button", name="This one is better").first
        page.evaluate(f"{AND_AGAIN}(() => document.querySelector('.choice').click())")
        expect(count(page, "choice")).to_have_text("1")
        shown(page)
        page.evaluate(
            f"{AND_AGAIN}(() => document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '1', bubbles: true}})))"
        )
        expect(count(page, "choice")).to_have_text("2")

        # the keyboard goes on where the new question is
        shown(page)
        better.focus()
        page.keyboard.press("Enter")
        expect(count(page, "choice")).to_have_text("3")
        expect(page.locator(".label-question")).to_be_focused()

        shown(page)
        page.get_by_role("button", name="Edit").first.click()
        box = page.get_by_role("textbox", name="Your version of the answer")
        box.fill("with care")
        page.locator(".label-head h2").click()
        for key in "120":
            page.keyboard.press(key)
        for name in ("This one is better", "Neither is better", "Rank several"):
            expect(page.get_by_role("button", name=name).first).to_be_disabled()
        page.get_by_role("button", name="Close").click()
        expect(page.get_by_role("button", name="Judge answers")).to_be_focused()
        page.get_by_role("button", name="Judge answers").click()
        expect(box).to_have_value("with care")
        page.get_by_role("button", name="Save").click()
        expect(count(page, "edit")).to_have_text("1")
        expect(better).to_be_enabled()
        assert httpx.get(f"{live.url}/api/label/counts").json()["choice"] == 3


def test_thumbs_follow_each_other_under_the_prompt_and_the_name_of_their_time(
    live: LiveServer, open_page: Open
) -> None:
    with live:
        page = open_page(live.url)
        page.evaluate("""localStorage["liuli.settings"] = '{"system": "Be kind."}'""")
        page.reload()
        page.get_by_role("textbox", name="Message").fill("hello")
        page.keyboard.press("Enter")
        good, bad = (page.get_by_role("button", name=f"{name} answer") for name in ("Good", "Bad"))
        expect(good).to_be_visible()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("System prompt").fill("Be a pirate.")
        page.keyboard.press("Escape")
        both = "['Good', 'Bad'].forEach(name => document.querySelector(`[aria-label='${name} answer']`).click())"
        page.evaluate(both)
        expect(bad).to_have_attribute("aria-pressed", "true")
        (thumb,) = export(live, "kto")
        assert (thumb["label"], thumb["prompt"][0]["content"]) == (False, "Be kind.")
        page.evaluate("""localStorage["liuli.who"] = '"Ada"'""")
        good.click()
        expect(good).to_have_attribute("aria-pressed", "true")
        (thumb,) = export(live, "kto")
        assert thumb["label"] is True

        # a new chat is seen, wherever it is asked for
        page.get_by_role("button", name="Judge answers").click()
        expect(page.locator(".label-page")).to_be_visible()
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".label-page")).to_have_count(0)
        expect(page.get_by_role("textbox", name="Message")).to_be_focused()
        assert page.evaluate("location.hash") == ""


def test_without_a_store_the_chat_has_no_thumbs(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "models" / "tiny")) as live:
        page = open_page(live.url)
        page.get_by_role("textbox", name="Message").fill("hello")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        assert page.get_by_role("button", name="Good answer").count() == 0
        assert page.get_by_role("button", name="Judge answers").count() == 0
