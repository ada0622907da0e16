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
        expect(cards).to_have_count(2)
        first, second = texts(page)
        assert first != second and "onerror" in first and page.locator(".label-page img").count() == 0
        page.locator(".label-head h2").click()
        page.keyboard.press("2")
        expect(count(page, "choice")).to_have_text("1")
        expect(cards).to_have_count(2)
        (row,) = export(live, "dpo")
        assert contents(row) == (second, first) and row["who"] == "Ada 1"
        page.keyboard.press("0")
        expect(count(page, "skipped")).to_have_text("1")
        expect(cards).to_have_count(2)
        first, second = texts(page)
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
        expect(cards).to_have_count(4)
        a, b, c, d = texts(page)
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
        expect(cards).to_have_count(4)
        a, b, c, d = texts(page)
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
        expect(page.locator(".label-card")).to_have_count(2)
        before = texts(page)
        page.route("**/api/label/judge", lambda route: route.fulfill(status=503, body="{}"))
        page.keyboard.press("1")
        expect(page.get_by_role("alert")).to_be_visible()
        assert texts(page) == before
        page.unroute("**/api/label/judge")
        page.keyboard.press("1")
        expect(count(page, "choice")).to_have_text("1")


def test_without_a_store_the_chat_has_no_thumbs(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "models" / "tiny")) as live:
        page = open_page(live.url)
        page.get_by_role("textbox", name="Message").fill("hello")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        assert page.get_by_role("button", name="Good answer").count() == 0
        assert page.get_by_role("button", name="Judge answers").count() == 0
