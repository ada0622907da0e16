"""Two models side by side in real Chromium: both answer, stop stops both, every word of both opens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.server.scripted import LiveServer, make_model, make_run, set_status, until

pytestmark = pytest.mark.browser
Open = Callable[..., Page]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished build with a model before and after alignment."""
    run = make_run(tmp_path / "laptop")
    stages = [
        {"name": name, "state": "done", "seconds": 1.0, "share": 0.25} for name in ("pretrain", "chat", "aligned")
    ]
    set_status(run, state="done", progress=1.0, stages=stages)
    for stage in ("pretrain", "chat", "aligned"):
        make_model(run / stage)
    return run


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def test_both_models_answer_side_by_side_until_it_is_turned_off(run: Path, open_page: Open) -> None:
    with LiveServer(run) as live:
        page = open_page(live.url)
        switch = page.get_by_role("button", name="Compare with the model before alignment")
        switch.click()
        ask(page, "which")
        answers = page.locator(".pair .answer")
        expect(answers.locator("h3")).to_have_text(["After “Learn from the scores (PPO)”", "After “Learn to converse”"])
        expect(answers.locator(".words")).to_have_text(["aligned", "chat"])
        boxes = [answer.bounding_box() for answer in answers.all()]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"] and boxes[0]["y"] == boxes[1]["y"]
        assert {voice.path.name for voice in live.voices} == {"aligned", "chat"}
        first, second = (voice.asked[-1][1] for voice in live.voices)
        assert (first.seed, first.temperature) == (second.seed, second.temperature) and first.seed is not None

        # every word of the second answer opens too
        answers.nth(1).locator(".word").first.click()
        expect(page.locator(".inspector li.chosen")).to_contain_text("chat")
        expect(page.locator(".word.selected")).to_have_count(1)
        page.keyboard.press("ArrowRight")
        expect(page.locator(".inspector li.chosen")).to_contain_text("end")
        page.keyboard.press("Escape")

        # what a person prefers is kept, once
        page.evaluate("[1, 0].forEach(n => document.querySelectorAll('.pair .pill')[n].click())")  # in one breath
        expect(page.locator(".pair .pill[aria-pressed=true]")).to_have_count(1)
        expect(page.locator(".pair .pill:disabled")).to_have_count(2)
        (row,) = map(json.loads, httpx.get(f"{live.url}/api/label/export").text.splitlines())
        assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("chat", "aligned")

        # the conversation goes on with the newer model's answer, also in what the other one reads
        ask(page, "history")
        goes_on = "user:which|assistant:aligned|user:history"
        expect(page.locator(".pair").nth(1).locator(".words")).to_have_text([goes_on, goes_on])
        expect(page.locator(".pair").nth(1).locator(".pill")).to_have_count(0)  # the same: nothing to choose

        page.reload()
        expect(page.locator(".pair")).to_have_count(2)
        switch.click()
        ask(page, "which")
        expect(page.locator(".words").nth(4)).to_have_text("aligned")
        expect(page.locator(".words")).to_have_count(5)
        assert sum(len(voice.asked) for voice in live.voices) == 5


def test_stop_stops_both_and_a_second_try_asks_both_again(run: Path, open_page: Open) -> None:
    with LiveServer(run, pause=0.05) as live:
        page = open_page(live.url)
        page.get_by_role("button", name="Compare with the model before alignment").click()
        ask(page, "long")
        words = page.locator(".words")
        for each in (words.nth(0), words.nth(1)):  # both grow at once
            expect(each).to_contain_text("word3")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator(".foot", has_text="stopped")).to_have_count(2)
        until(lambda: [voice.closed for voice in live.voices] == [1, 1])
        page.get_by_role("button", name="Answer again").click()
        expect(words.nth(1)).to_contain_text("word3")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator(".versions")).to_have_text("2/2")


def test_on_a_phone_the_answers_lie_below_each_other(run: Path, open_page: Open) -> None:
    with LiveServer(run) as live:
        page = open_page(live.url, viewport={"width": 360, "height": 700}, has_touch=True, locale="zh-CN")
        page.get_by_role("button", name="与对齐前的模型比较").click()
        page.get_by_role("textbox", name="消息").fill("which")
        page.keyboard.press("Enter")
        answers = page.locator(".pair .answer")
        expect(answers.locator(".words")).to_have_text(["aligned", "chat"])
        expect(answers.locator("h3")).to_have_text(["完成“从得分中学习（PPO）”后", "完成“学习对话”后"])
        boxes = [answer.bounding_box() for answer in answers.all()]
        assert boxes[0]["y"] + boxes[0]["height"] < boxes[1]["y"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_one_model_alone_is_not_compared(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        page = open_page(live.url)
        page.evaluate("localStorage.setItem('liuli.compare', 'true')")  # from another run on this address
        page.reload()
        ask(page, "which")
        expect(page.locator(".words")).to_have_text(["tiny"])
        expect(page.locator(".compare, .pair")).to_have_count(0)
