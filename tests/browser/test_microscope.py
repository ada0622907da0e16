"""The microscope in real Chromium, on a made-up run with three traced steps: from the charts to one token's numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, Route, expect

from liuli.stages.experience import Reward
from liuli.stages.grpo import GRPOOptions, grpo
from liuli.stages.rollout import Rollouts
from liuli.stages.training import write_model
from liuli.text import Message
from liuli.train import RunLog, StageState
from liuli.train.trace import read_trace, write_trace
from tests.engine.conftest import byte_tokenizer, make_model
from tests.server.scripted import LiveServer, make_run, set_status
from tests.server.test_trace_api import figures, made_up, make_traced_run

pytestmark = pytest.mark.browser
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_traced_run(tmp_path_factory.mktemp("runs") / "laptop", answers=60)


@pytest.fixture(scope="module")
def live(run: Path) -> Iterator[LiveServer]:
    with LiveServer(run) as server:
        yield server


def test_from_the_charts_to_the_numbers_of_one_token(live: LiveServer, run: Path, open_page: Open) -> None:
    page = open_page(live.url)
    page.get_by_role("button", name="Microscope").click()
    expect(page.locator(".micro-charts figure")).to_have_count(8)
    for figure in page.locator(".micro-charts .smooth").all():
        assert len(figure.get_attribute("d")) > 60 and "NaN" not in figure.get_attribute("d")
    expect(page.locator(".micro-step")).to_contain_text("Step 80")

    # another step by its slider, its answers by score, the best one opened
    page.get_by_label("Traced step", exact=True).fill("1")
    expect(page.locator(".micro-step")).to_contain_text("Step 40")
    marker, near = page.locator("figure[data-figure=kl] .marker"), page.locator("figure[data-figure=kl] figcaption b")
    at_step = near.inner_text()
    marker.hover(force=True)
    expect(page.locator("figure[data-figure=kl] .near")).to_have_count(1)
    assert near.inner_text() == at_step  # the figures are those of the chosen step where nothing is pointed at
    page.get_by_label("Order").select_option("score")
    written = read_trace(run, "ppo", 40)
    scores = {n: score for n, score in enumerate(written["sequences"]["score"]) if score is not None}
    best = max(scores, key=lambda n: scores[n])
    first = page.locator(".micro-answers li").first
    expect(first).to_contain_text(f"Score {scores[best]:.2f}")
    expect(page.locator(".micro-answers li")).to_have_count(50)
    page.get_by_role("button", name="More answers").click()
    expect(page.locator(".micro-answers li")).to_have_count(60)
    first.get_by_role("button").click()
    expect(first.get_by_role("button")).to_have_attribute("aria-pressed", "true")

    # the loss mask can be read off: exactly the tokens that were not drawn are hatched
    tokens = read_trace(run, "ppo", 40, best)["tokens"]
    chips = page.locator(".micro-chips [data-place]")
    expect(chips).to_have_count(len(tokens["text"]))
    hatched = ["untrained" in chip.get_attribute("class") for chip in chips.all()]
    assert hatched == [not drawn for drawn in tokens["drawn"]]
    assert "repeating-linear-gradient" in chips.first.evaluate("e => getComputedStyle(e).backgroundImage")
    low = ["low" in chip.get_attribute("class").split() for chip in chips.all()]
    assert low == [value is not None and value < 0 for value in tokens["advantage"]]

    # a click holds a token's numbers; arrows go on to the next; another figure gives other colours
    place = tokens["drawn"].index(True)
    chips.nth(place).click()
    detail = page.locator(".micro-detail")
    expect(detail).to_contain_text(f"place {place}, token {place + 20} · trained")
    expect(detail.locator("div.chosen")).to_have_text(f"Advantage{tokens['advantage'][place]:.3f}")
    page.mouse.move(0, 0)
    page.locator(".micro-chips").press("ArrowLeft")
    expect(detail).to_contain_text("not trained")
    page.get_by_label("Colour by").select_option("entropy")
    expect(page.locator(".micro-chips .low")).to_have_count(0)
    expect(page.locator(".micro-ramp i")).to_have_class("grows")


def test_the_same_question_then_and_now_and_a_click_on_a_chart_opens_its_step(
    live: LiveServer, open_page: Open
) -> None:
    page = open_page(f"{live.url}/#/microscope")
    then_now = page.locator(".micro-columns").first
    expect(then_now.locator(":scope > div")).to_have_count(2)
    expect(then_now).to_contain_text("Step 0")
    expect(then_now).to_contain_text("Step 80")
    expect(page.locator(".micro-columns").last).to_contain_text("Paris is nice.")
    box = page.locator("figure[data-figure=kl] svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    expect(page.locator(".micro-step")).to_contain_text("Step 0")

    def asked_later(route: Route) -> None:
        said = route.fetch().json()
        route.fulfill(json={**said, "same_prompt": said["same_prompt"][1:]})

    page.route("**/api/traces/ppo/0/*", asked_later)
    page.locator(".micro-answers li button").nth(1).click()
    expect(then_now.locator(":scope > div")).to_have_count(2)
    expect(then_now.locator(":scope > div").first).to_have_text("Not asked at step 0")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("main.chat")).to_be_visible()
    expect(page.locator(".microscope")).to_have_count(0)


def test_it_follows_a_run_that_goes_on(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        page = open_page(live.url)
        expect(page.get_by_role("progressbar")).to_be_visible()
        expect(page.get_by_role("button", name="Microscope")).to_have_count(0)
        set_status(run, stage="grpo")
        with open(run / "log.jsonl", "a") as log:
            log.write("\n" + json.dumps({"stage": "grpo", **figures(0)}) + "\n")
        page.get_by_role("button", name="Microscope").click()
        expect(page.get_by_text("No step of this stage was traced yet.")).to_be_visible()
        for step in (0, 1):
            write_trace(run, "grpo", step, *made_up(step, 3))
            set_status(run, step=step)
            expect(page.locator(".micro-step")).to_contain_text(f"Step {step}")
        expect(page.locator(".micro-chips [data-place]").first).to_be_visible()
        told = {"error": {"message": "This step cannot be read: 0.npz is damaged.", "code": "damaged"}}
        page.route("**/api/traces/grpo/0?*", lambda route: route.fulfill(status=503, body=json.dumps(told)))
        page.get_by_role("button", name="Previous traced step").click()
        expect(page.get_by_role("alert")).to_have_text("This step cannot be read: its file is damaged.")
        expect(page.locator(".micro-answers, .micro-chips")).to_have_count(0)  # those were of another step
        page.get_by_role("button", name="Switch to Chinese").click()
        expect(page.get_by_role("alert")).to_have_text("这一步无法读取：文件已损坏。")
        page.get_by_role("button", name="切换到英文").click()
        page.get_by_role("button", name="Next traced step").click()
        expect(page.get_by_role("alert")).to_have_count(0)


def test_grpo_has_no_values_and_none_are_charted_or_offered(tmp_path: Path, open_page: Open) -> None:
    run, tokenizer = tmp_path / "laptop", byte_tokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    write_model(make_model("qwen3", 64), tmp_path / "model", tokenizer, tmp_path / "tokenizer", {"seed": 0})
    log = RunLog(run, [StageState("grpo", "grpo")], quiet=True, tensorboard=False)
    log.begin("grpo")
    options = GRPOOptions(steps=2, answers=8, group=4, max_tokens=6, most_drift=1.0, trace_every=1)
    prompts = [(Message("user", f"say {n}"),) for n in range(4)]
    grpo(tmp_path / "model", prompts, run / "grpo", reward=by_place, options=options, log=log)
    with LiveServer(run) as live:
        page = open_page(f"{live.url}/#/microscope")
        expect(page.locator(".micro-charts figure[data-figure=clip_fraction]")).to_have_count(1)
        expect(page.locator("figure[data-figure=explained_variance]")).to_have_count(0)
        offered = page.get_by_label("Colour by").locator("option")
        expect(offered.filter(has_text="Advantage")).to_have_count(1)
        assert not {"Value", "Return"} & set(offered.all_text_contents())
        page.locator(".micro-chips .high, .micro-chips .low").first.click()
        expect(page.locator(".micro-detail dt").first).to_have_text("Advantage")
        assert page.locator(".micro-detail dt").all_text_contents() == offered.all_text_contents()
        expect(page.locator(".micro-tokens")).to_contain_text("How much better than expected it turned out.")


def by_place(rollouts: Rollouts) -> Reward:
    return Reward(torch.arange(float(len(rollouts))))


def test_small_figures_are_told_apart_and_seen_whole(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url, viewport={"width": 360, "height": 740})

    def small(route: Route) -> None:
        said = route.fetch().json()
        for n, point in enumerate(said["stages"][0]["figures"]):
            point |= {"clip_fraction": 0.006 * n, "score": 0.5 if n == 0 else -3.07e-8}
        route.fulfill(json=said)

    def near_one(route: Route) -> None:
        said = route.fetch().json()
        route.fulfill(json={**said, "scales": {**said["scales"], "ratio": [0.997, 1.003]}})

    def half(route: Route) -> None:
        said = route.fetch().json()
        said["tokens"]["text"][0] = "\ufffd"
        route.fulfill(json=said)

    for path, change in (("", small), ("/ppo/80?*", near_one), ("/ppo/80/*", half)):
        page.route(f"**/api/traces{path}", change)
    page.goto(f"{live.url}/#/microscope")
    page.reload()
    expect(page.locator("figure[data-figure=score] figcaption b")).to_have_text("0")
    cut = "[...document.querySelectorAll('.micro-charts text')].filter(e => e.getBBox().x < 0).map(e => e.textContent)"
    assert page.evaluate(cut) == []
    page.get_by_label("Colour by").select_option("ratio")
    expect(page.locator(".micro-ramp")).to_have_text("0.9971.003")
    chip = page.locator(".micro-chips [data-place]").first
    expect(chip).to_have_text("part of a character")
    chip.click()
    page.get_by_label("Colour by").select_option("advantage")
    expect(page.locator(".token.held")).to_have_text("part of a character")


def test_a_phone_in_chinese_and_the_dark(live: LiveServer, open_page: Open) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "locale": "zh-CN", "color_scheme": "dark"}
    page = open_page(live.url, **phone)
    page.get_by_role("button", name="显微镜").tap()
    page.locator(".micro-chips [data-place]").nth(6).tap()
    expect(page.locator(".micro-detail")).to_contain_text("优势")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('.microscope').scrollWidth") <= 360
    dark = page.locator(".token.high").first.evaluate("e => getComputedStyle(e).color")
    assert sum(map(int, re.findall(r"\d+", dark))) > 600  # light ink on a dark ground
