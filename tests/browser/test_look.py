"""Both languages, dark and light, wide and narrow, and the run one watches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from liuli.evals import write_report
from liuli.evals.words import STAGES
from tests.server.scripted import LiveServer, make_model, make_run, set_status, until

pytestmark = pytest.mark.browser
Open = Callable[..., Page]
WEB = Path(__file__).parents[2] / "web" / "src"
CHINESE = re.compile(r"[一-鿿]")


def test_every_string_has_both_languages() -> None:
    table = json.loads((WEB / "words.json").read_text())
    for key, texts in table.items():
        assert len(texts) == 2 and all(text.strip() for text in texts), key
        fields = [sorted(re.findall(r"\{(\w+)\}", text)) for text in texts]
        assert fields[0] == fields[1], key
        assert CHINESE.search(texts[1]) or key == "language", key
    source = "".join(path.read_text() for path in WEB.glob("*.ts*"))
    unused = [key for key in table if f'"{key}"' not in source and not re.match("stage_|explain_|state_|curve_", key)]
    assert not unused
    assert {name: tuple(table[f"stage_{name}"]) for name in STAGES} == STAGES  # as terminal and report call them
    named = set(re.findall(r'word: "(micro_\w+)"', source)) | {f"stage_{name}" for name in STAGES}
    assert not [word for word in named if f"explain_{word.removeprefix('stage_')}" not in table]


def visible_texts(page: Page) -> str:
    labels = "[...document.querySelectorAll('[aria-label],[placeholder],[title]')]"
    names = "['aria-label','placeholder','title'].map(n => e.getAttribute(n)).join(' ')"
    return page.evaluate(f"document.body.innerText + {labels}.map(e => {names}).join('\\n')")


def test_the_switch_changes_every_string(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    (run / "samples.jsonl").write_text("")  # what a model says is not the page's
    make_model(run / "snapshots" / "pretrain-00000900")
    set_status(run, message="stopped by hand; the same command goes on")
    with LiveServer(run) as live:
        page = open_page(live.url)
        page.get_by_role("button", name="Settings").click()
        expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
        assert set(CHINESE.findall(visible_texts(page))) == set("琉璃中文")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Switch to Chinese").click()
        page.get_by_role("button", name="设置").click()
        words = set(re.findall(r"[A-Za-z]{2,}", visible_texts(page)))
        assert words <= {"Liuli", "English", "ChatGPT", "laptop", "tokenizer", "pretrain", "chat", "evaluate"}, words
        page.reload()
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")  # and it is remembered


def test_a_chinese_browser_gets_chinese(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        expect(open_page(live.url, locale="zh-CN").get_by_text("想问点什么？")).to_be_visible()


def expect_dark(page: Page, dark: bool) -> None:
    """The ground the page lies on is dark, or light."""

    def lightness() -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    until(lambda: lightness() < 150 if dark else lightness() > 600)


def test_dark_mode_follows_the_system_until_one_chooses(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        page = open_page(live.url, color_scheme="dark")
        expect_dark(page, True)
        page.emulate_media(color_scheme="light")
        expect_dark(page, False)
        page.get_by_role("button", name="Dark or light").click()
        expect_dark(page, True)
        page.reload()
        expect_dark(page, True)


def test_the_run_shows_stage_progress_curve_and_samples(tmp_path: Path, open_page: Open) -> None:
    live_run = make_run(tmp_path / "laptop")
    with LiveServer(live_run) as live:
        page = open_page(live.url)
        expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "42")
        expect(page.locator(".learn")).to_contain_text("8 min left")
        expect(page.locator(".stages [aria-current=step]")).to_contain_text("Read")
        expect(page.locator(".stages li.done")).to_have_count(1)
        expect(page.locator(".chart .smooth")).to_have_count(1)
        assert len(page.locator(".chart .smooth").get_attribute("d")) > 1000
        assert {"0", "1", "2"} <= set(page.locator(".chart text").all_text_contents())
        expect(page.locator(".said")).to_contain_text("Paris is the capital of France. (5)")
        page.get_by_label("Snapshot").fill("0")
        expect(page.locator(".said")).to_contain_text("the the of the")
        expect(page.locator(".samples header")).to_contain_text("step 150")
        for seconds, said in ((3590, "1 h 0 min left"), (7190, "2 h 0 min left"), (89, "1 min left")):
            set_status(live_run, seconds_left=seconds)
            expect(page.locator(".learn")).to_contain_text(said)


def test_the_page_takes_nothing_from_a_model_that_learns(tmp_path: Path, open_page: Open) -> None:
    """What moves is painted sixty times a second, by the processor where there is no graphics card."""
    with LiveServer(make_run(tmp_path / "laptop")) as live:
        page = open_page(live.url)
        expect(page.locator(".stages [aria-current=step]")).to_contain_text("Read")
        expect(page.locator(".chip.running")).to_be_visible()
        until(lambda: page.evaluate("document.getAnimations().length") == 0)


def test_a_curve_has_numbers_on_its_axis_and_a_dot_for_a_single_point(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    points = [("pretrain", 4.1), ("pretrain", 3.6), ("pretrain", 3.2), ("chat", 3.4)]
    lines = [
        json.dumps({"time": 10.0 * n, "stage": stage, "step": n, "loss": bpb, "bpb": bpb})
        for n, (stage, bpb) in enumerate(points)
    ]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")
    with LiveServer(run) as live:
        page = open_page(live.url)
        expect(page.locator(".legend > span")).to_have_count(2)
        expect(page.locator(".chart .dot-mark")).to_have_count(1)
        assert page.locator(".chart .grid").count() >= 2


def test_chat_opens_with_the_first_snapshot_and_follows_newer_ones(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    with LiveServer(run) as live:
        page = open_page(live.url)
        expect(page.get_by_text("Still learning to speak")).to_be_visible()
        page.get_by_role("textbox", name="Message").fill("which")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("still learning to speak")
        make_model(run / "snapshots" / "pretrain-00000600")
        expect(page.locator(".note")).to_contain_text("step 600")
        page.get_by_role("button", name="Answer again").click()
        expect(page.locator(".words")).to_contain_text("pretrain-00000600")
        make_model(run / "chat")
        (run / "report.html").write_text("<h1>Report</h1>")
        set_status(run, state="done", progress=1.0)
        expect(page.get_by_role("link", name="Open the report")).to_have_attribute(
            "href", "report.html?lang=en&theme=light"
        )
        page.get_by_role("button", name="Answer again").click()
        expect(page.locator(".words")).to_have_text("chat")
        expect(page.locator(".note")).to_have_count(0)


def test_the_report_opens_in_the_language_and_the_theme_of_the_page(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    write_report(run)
    with LiveServer(run) as live:
        page = open_page(f"{live.url}/report.html?lang=zh&theme=dark", color_scheme="light")
        expect(page.locator("header .lead .zh")).to_be_visible()
        expect_dark(page, True)
        page.goto(f"{live.url}/report.html?theme=light")
        expect(page.locator("header .lead .en")).to_be_visible()
        expect_dark(page, False)
        page.emulate_media(color_scheme="dark")
        expect_dark(page, False)
        page.goto(f"{live.url}/report.html")  # by itself it follows the browser
        expect_dark(page, True)


def test_a_phone_has_everything_behind_two_tabs(tmp_path: Path, open_page: Open) -> None:
    run = make_run(tmp_path / "laptop")
    make_model(run / "pretrain")
    with LiveServer(run) as live:
        page = open_page(live.url, viewport={"width": 360, "height": 700}, has_touch=True)
        expect(page.locator(".learn")).to_be_hidden()
        page.wait_for_timeout(200)
        for first in (".welcome .logo", ".welcome h2", ".welcome > p"):
            expect(page.locator(first)).to_be_in_viewport(ratio=1)  # the first screen begins at its beginning
        page.get_by_role("button", name="Learning").click()
        expect(page.locator(".learn")).to_be_visible()
        expect(page.locator("main.chat")).to_be_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="Chat", exact=True).click()
        page.locator(".examples button").first.click()
        page.locator(".word").first.click()
        box = page.locator(".inspector").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 700


def test_a_failed_build_is_told_in_the_readers_language_and_its_own_words_stand_apart(
    tmp_path: Path, open_page: Open
) -> None:
    run = make_run(tmp_path / "laptop")
    set_status(run, state="failed", message="no room on the disk\n  to do: make room")
    with LiveServer(run) as live:
        head = open_page(live.url, locale="zh-CN").locator(".learn .card").first
        expect(head.locator(".problem")).to_have_text(re.compile("^遇到错误停下了。.*再运行同一条命令即可继续"))
        expect(head.locator("[lang=en]")).to_have_text("no room on the disk\n  to do: make room", use_inner_text=True)


def test_a_server_that_is_gone_is_told(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "tiny")) as live:
        page = open_page(live.url)
        page.route("**/api/**", lambda route: route.fulfill(status=503, body="{}"))
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
