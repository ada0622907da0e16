"""The report: whole on its own, honest about what is missing, readable at any width in two languages."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from liuli.errors import UsageError
from liuli.evals import write_report
from liuli.evals.aligned import _fall
from liuli.evals.runfolder import read_run, stage_seconds, work_clock


class Reader(HTMLParser):
    """Collects text, and every address a page could load something from; notices tags that are never closed."""

    EMPTY = ("meta", "input", "line", "polyline", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.text, self.addresses, self.open = "", list[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        self.text += text


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    assert reader.open == []
    return reader


def test_report_is_one_file_that_loads_nothing(fake_run: Path) -> None:
    path = write_report(fake_run)
    assert path == fake_run / "report.html"
    assert read(path).addresses == []
    assert not re.search(r"url\(|@import|fetch\(|https?:", path.read_text("utf-8"))


def test_report_states_the_plan_what_came_of_it_and_every_measured_skill(fake_run: Path) -> None:
    text = read(write_report(fake_run)).text
    for fact in (
        "3.05M",
        "planned 15:00",
        "14:27",
        "6 × 192",
        "planned 0.49",
        "0.74",
        "Two cores of something",
        "torch",
    ):
        assert fact in text
    figures = json.loads((fake_run / "eval.json").read_text("utf-8"))
    for row in figures["skills"]:
        assert row["skill"].replace("_", " ") in text
    assert "417 × 38 = 15846." in text and "你叫小梅。" in text  # chats
    assert "的的了一，是" in text  # what the first snapshot said
    assert f"liuli chat {fake_run / 'chat'}" in text


def test_report_of_a_run_stopped_early_has_what_there_is(fake_run: Path, tmp_path: Path) -> None:
    for name in ("eval.json", "samples.jsonl", "recipe.toml"):
        (fake_run / name).unlink()
    assert "Learn to converse学习对话" in read(write_report(fake_run)).text
    (tmp_path / "empty").mkdir()
    read(write_report(tmp_path / "empty"))
    with pytest.raises(UsageError):
        write_report(tmp_path / "nowhere")


def test_report_says_what_each_stage_forgot_and_what_the_reward_model_knows(fake_run: Path) -> None:
    assert "What it forgot" not in read(write_report(fake_run)).text  # nothing was measured before
    figures = json.loads((fake_run / "eval.json").read_text("utf-8"))
    bits = {
        name: {"en": {"per_byte": per_byte}} for name, per_byte in (("before", 0.5), ("rival", 2.25), ("now", 2.21))
    }
    figures |= {"bits_before": bits["before"], "bits_rival": bits["rival"], "bits": bits["now"]}
    share = {"n": 90, "right": 81, "accuracy": 0.9, "low": 0.8, "high": 0.95}
    both = {"before": share, "after": share | {"accuracy": 0.915}}
    figures["versus"] = {"wins": share, "asked": 90, "right": both, "claims": both, "refusals": both, "skills": {}}
    figures["model"]["name"] = "aligned"
    (fake_run / "eval.json").write_text(json.dumps(figures), "utf-8")
    judge = {
        "time": 2e9,
        "stage": "reward",
        "ceiling": 0.97,
        "accuracy": 0.96,
        "held_out": 1616.0,
        "calibration": 0.011,
    }
    judge |= {"accuracy, claim": 0.972, "margin, claim": 3.59, "accuracy, own": 0.512, "margin, own": -0.04}
    with (fake_run / "log.jsonl").open("a") as log:
        log.write(json.dumps(judge) + "\n")
    text = read(write_report(fake_run)).text
    assert (
        "Learn to converse学习对话2.25+1.7590.0Learn from the scores (PPO)从得分中学习（PPO）2.21-0.0491.5+1.50" in text
    )
    assert "1,616 unseen comparisons" in text and "off by 1.1% on average" in text
    assert "“I don’t know”, not a made-up fact“我不知道”胜过编造97.2%3.59own51.2%-0.040" in text


def test_a_report_of_a_model_that_knows_nothing_is_written(fake_run: Path) -> None:
    figures = json.loads((fake_run / "eval.json").read_text("utf-8"))
    bits = {"en": {"per_byte": 2.5}}
    figures |= {"bits_before": bits, "bits_rival": bits, "bits": bits}
    none = {"n": 90, "right": 0, "accuracy": 0.0, "low": 0.0, "high": 0.04}
    both = {"before": none, "after": none}
    wins = {"n": 0, "right": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0}
    figures["versus"] = {"wins": wins, "asked": 90, "right": both, "claims": both, "refusals": both, "skills": {}}
    figures["model"]["name"] = "aligned"
    (fake_run / "eval.json").write_text(json.dumps(figures), "utf-8")
    text = read(write_report(fake_run)).text
    assert "What it forgot" in text and "0.00" in text
    assert "0% – 100%" not in text and "n 0" in text  # where nothing differs there is no share


def test_text_of_a_model_cannot_become_markup(fake_run: Path) -> None:
    evil = '</script><script>document.title="owned"</script><b>'
    figures = json.loads((fake_run / "eval.json").read_text("utf-8"))
    figures["examples"][0]["said"][-1]["content"] = evil
    (fake_run / "eval.json").write_text(json.dumps(figures), "utf-8")
    sample: dict[str, Any] = {"time": 1.0, "stage": evil, "step": 0, "progress": 0.0}
    sample["answers"] = [{"prompt": evil, "language": "en", "answer": evil}]
    (fake_run / "samples.jsonl").write_text(json.dumps(sample) + "\n", "utf-8")
    page = write_report(fake_run).read_text("utf-8")
    assert "<script>document" not in page and "&lt;script&gt;document" in page


def test_time_in_which_the_run_lay_stopped_does_not_count(fake_run: Path) -> None:
    first = [{"time": t, "stage": "pretrain"} for t in (0.0, 10.0, 210.0)]  # a long silence is work: nothing restarted
    again = [{"time": 9000.0, "stage": "pretrain", "event": "pretrain started"}, {"time": 9010.0, "stage": "pretrain"}]
    log = work_clock([*first, *again])
    assert [record["at"] for record in log] == [0.0, 10.0, 210.0, 210.0, 220.0]
    assert stage_seconds(log) == {"pretrain": 220.0}
    assert read_run(fake_run).seconds == pytest.approx(867)


@pytest.mark.browser
def test_report_fits_a_phone_changes_language_and_answers_the_pointer(
    fake_run: Path, open_page: Callable[..., Page]
) -> None:
    page = open_page(write_report(fake_run).as_uri(), viewport={"width": 360, "height": 800}, locale="en-GB")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.get_by_role("heading", name="What it can do").is_visible()
    page.locator("label[for=zh]").click()
    assert page.get_by_role("heading", name="它会什么").is_visible()
    assert not page.get_by_role("heading", name="What it can do").is_visible()
    page.locator(".plot.large .box").hover()
    assert re.match(r"\d+:\d\d · \d", page.locator(".plot.large output").inner_text())


def test_the_fall_of_true_worth_is_said_only_where_it_is_more_than_chance() -> None:
    chance = random.Random(0)
    noisy = [(n / 10, 0.6 + chance.gauss(0, 0.1)) for n in range(50)]
    falling = [(kl, worth - max(0.0, kl - 2) * 0.2) for kl, worth in noisy]
    assert "does not fall" in _fall(noisy)
    begins = re.search(r"Past a KL of (\d\.\d+)", _fall(falling))
    assert begins and 0.5 < float(begins[1]) < 3.1
