"""The chat in real Chromium: it streams, stops, answers again, and every word opens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.server.scripted import MARKDOWN, LiveServer, make_model, pieces, until

pytestmark = pytest.mark.browser
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(make_model(tmp_path_factory.mktemp("models") / "tiny"), pause=0.01) as server:
        yield server


def ask(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")


def scripted(page: Page, *events: dict) -> None:
    """The model answers with these events, and with nothing else."""
    whole = [{"type": "start", "left_out": 0}, *events, {"type": "done", "stopped_by": "end"}]
    body = "".join(json.dumps(event) + "\n" for event in whole)
    page.route("**/api/chat", lambda route: route.fulfill(body=body))


def rest(page: Page) -> None:
    """Until what rises has risen."""
    until(lambda: page.evaluate("document.getAnimations().length") == 0)


def token(text: str) -> dict:
    return {"type": "token", "id": 1, "text": text, "logprob": 0, "alternatives": []}


def ask_to_the_end(page: Page, text: str) -> None:
    ask(page, text)
    expect(page.get_by_role("button", name="Answer again")).to_be_visible(timeout=20_000)


def test_text_appears_while_it_is_written_and_stop_stops_it(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "slow"), pause=0.1) as live:  # half a minute: time to press the button
        page = open_page(live.url)
        ask(page, "long")
        words = page.locator(".words")
        expect(words).to_contain_text("word3")
        assert "word399" not in words.inner_text()
        closed = live.voice.closed
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.get_by_role("textbox", name="Message")).to_be_focused()
        expect(page.locator(".foot")).to_contain_text("stopped")
        until(lambda: live.voice.closed == closed + 1)  # the work stops on the server too
        page.reload()
        expect(page.locator(".words")).to_contain_text("word3")  # and the conversation is still there
        page.get_by_role("button", name="New chat").click()
        expect(page.locator(".question")).to_have_count(0)

        # Escape that ends the input of Chinese stops nothing; a reload does, and nothing failed
        ask(page, "long")
        expect(words).to_contain_text("word3")
        escape = "new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true})"
        page.evaluate(f"document.getElementById('message').dispatchEvent({escape})")
        expect(words).to_contain_text("word6")
        expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
        page.reload()
        expect(page.locator(".foot")).to_contain_text("stopped")
        expect(page.get_by_role("alert")).to_have_count(0)


def test_regenerate_keeps_both_answers(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    first = page.locator(".words").inner_text()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".versions")).to_contain_text("2/2")
    assert page.locator(".words").inner_text() != first
    page.get_by_role("button", name="Previous answer").click()
    assert page.locator(".words").inner_text() == first


def test_a_click_on_a_word_shows_what_else_could_stand_there(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    page.locator(".word", has_text="said").click()
    pane = page.get_by_role("dialog", name="What else could stand here")
    shares = [float(row.get_attribute("data-probability")) for row in pane.locator("li").all()]
    assert shares[:3] == [0.6, 0.15, 0.1] and len(shares) == 9
    assert sum(shares[:8]) <= 1 and sum(shares) == pytest.approx(1, abs=0.001)
    expect(pane.locator("li.chosen")).to_contain_text("said")
    expect(pane.locator("li.chosen .percent")).to_have_text("60%")
    assert (
        pane.locator("li.chosen .bar").bounding_box()["width"] > pane.locator("li .bar").nth(1).bounding_box()["width"]
    )
    page.keyboard.press("ArrowRight")
    expect(pane.locator("li.chosen")).to_contain_text("你好")
    page.keyboard.press("Escape")
    expect(pane).to_have_count(0)


def test_words_can_be_walked_by_keyboard(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    page.locator(".words").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".word.selected")).to_have_text("You")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".inspector li.chosen")).to_contain_text("end")  # ending is a choice too


def test_the_open_word_and_its_pane_stay_in_the_window(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url, viewport={"width": 700, "height": 480})
    ask_to_the_end(page, "long")
    page.locator(".words").focus()
    word, pane = page.locator(".word.selected"), page.locator(".inspector")
    for key, presses in (("Enter", 1), ("ArrowLeft", 1), ("ArrowRight", 110)):  # the first word, the last, and on
        if key == "ArrowRight":
            page.locator(".word").nth(160).click()
        for _ in range(presses):
            page.keyboard.press(key)
        expect(word).to_be_in_viewport(ratio=1)
        expect(pane).to_be_in_viewport(ratio=1)
        page.keyboard.press("Escape" if key != "ArrowRight" else "Shift")
    page.locator(".scroll").evaluate("e => (e.scrollTop = 0)")
    expect(pane).to_have_count(0)  # who scrolls away reads on
    page.set_viewport_size({"width": 360, "height": 740})
    page.locator(".word").nth(-2).click()
    rest(page)
    at, sheet = word.bounding_box(), pane.bounding_box()
    assert at["y"] + at["height"] <= sheet["y"]


@pytest.mark.parametrize(
    "said",
    [
        "5.",
        "1783.",
        "- 5",
        "+ 7",
        "# 5",
        "> 5",
        "Counted:\n\n5.",
        "2*3*4 = 24",
        "(1+2)*3*(4) = 36",
        "2**3**2 = 512",
        "x*y*z",
        "2**n + 3**n, f(x)**2 + y**2",
        "温度3~5天，湿度7~9天。",
    ],
)
def test_every_sign_of_a_short_answer_is_seen_and_opens(live: LiveServer, open_page: Open, said: str) -> None:
    page = open_page(live.url)
    scripted(page, *map(token, pieces(said)))
    ask_to_the_end(page, "hello")
    assert page.locator(".words").inner_text() == said
    assert "".join(page.locator(".word").all_text_contents()).strip() == said.replace("\n", "")
    assert page.locator(".words :is(em, strong, del, li, h3)").count() == 0


def test_markup_that_is_meant_is_drawn_also_before_chinese(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    scripted(
        page,
        *map(token, pieces("**粗体。**后面是*斜体*，~~删除~~。\n\n0. zero\n1. one\n\n[here](https://example.org)")),
    )
    ask_to_the_end(page, "hello")
    words = page.locator(".words")
    for tag, said in {"strong": "粗体。", "em": "斜体", "del": "删除", "a": "here"}.items():
        expect(words.locator(tag)).to_have_text(said)
    expect(words.locator("ol")).to_have_attribute("start", "0")
    page.evaluate("document.querySelector('.words a').addEventListener('click', e => e.preventDefault())")
    words.locator("a .word").first.click()
    expect(page.locator(".inspector")).to_have_count(0)  # a link opens its page, not its words


BOLD = {
    "word**bold**, un**believ**able, Python**编程**很好": ["bold", "believ", "编程"],
    "这是**重点**，请看。是**“重点”**的，**《书》**。": ["重点", "“重点”", "《书》"],
    "第**3**章和**（一）**节；涨了**+5%**左右，价**￥100**元": ["3", "（一）", "+5%", "￥100"],
    "PDF**《说明》**里**[链接](https://example.org)**的`码`**😀**吗": ["《说明》", "链接", "😀"],
    "これは**「重要」**です。**カタカナ、**と": ["「重要」", "カタカナ、"],
    "이것은 **“중요”**는 **단어(word)**를": ["“중요”", "단어(word)"],
    "**注意：**English，**粗*斜。*体。**后": ["注意：", "粗斜。体。"],
}


def test_bold_is_bold_behind_a_letter_and_beside_chinese_japanese_and_korean(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    scripted(page, *map(token, pieces("\n\n".join(BOLD))))
    ask_to_the_end(page, "hello")
    lines = page.locator(".words p")
    assert [line.locator("strong").all_text_contents() for line in lines.all()] == list(BOLD.values())
    assert "*" not in page.locator(".words").inner_text()


def test_text_from_right_to_left_is_laid_out_and_walked_from_there(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    said = "שלום עולם\n\n1. ראשון\n2. שני\n\n- one\n\n> ציטוט\n\n* א\n\n  ב\n\n* ג"
    scripted(page, *map(token, pieces(said)))
    ask_to_the_end(page, "מה שלומך?")
    words, question = page.locator(".words"), page.locator(".bubble")

    def sides(locator: Locator) -> tuple[float, float]:
        """The space at the left and at the right of the text in its column."""
        column = words.evaluate("e => e.getBoundingClientRect().toJSON()")
        at = locator.evaluate(
            "e => { const r = new Range(); r.selectNodeContents(e); return r.getBoundingClientRect().toJSON(); }"
        )
        return at["left"] - column["left"], column["right"] - at["right"]

    assert question.evaluate("e => getComputedStyle(e).direction") == "rtl"
    for text, right_to_left in (("p", True), ("ul li", False), ("ol li", True), ("blockquote p", True), ("li p", True)):
        left, right = sides(words.locator(text).first)
        assert (left > right) == right_to_left, text
        assert min(left, right) > 10 or text == "p", text  # where the number, the dot or the line stands
    page.locator(".word").first.click()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".inspector footer")).to_contain_text("2 of")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".inspector footer")).to_contain_text("1 of")


def test_in_a_low_window_the_pane_covers_its_word_nowhere(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "long")
    word, pane = page.locator(".word.selected"), page.locator(".inspector")
    for width, height in ((700, 360), (900, 300), (640, 340), (600, 340), (1280, 500)):
        page.set_viewport_size({"width": width, "height": height})
        for n in (120, 121, 122, 123, 124, 125, 126, 127):  # from the left to the right of a line
            page.locator(".word").nth(n).click()
            rest(page)
            at, box = word.bounding_box(), pane.bounding_box()
            apart = [at["y"] >= box["y"] + box["height"], at["y"] + at["height"] <= box["y"]]
            apart += [at["x"] >= box["x"] + box["width"], at["x"] + at["width"] <= box["x"]]
            assert any(apart), (width, height, n, at, box)
            assert (
                box["y"] >= 0
                and box["y"] + box["height"] <= height
                and box["x"] >= 0
                and box["x"] + box["width"] <= width
            )
            page.keyboard.press("Escape")


def test_markdown_is_drawn_its_words_open_and_nothing_in_it_runs(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "markdown")
    words = page.locator(".words")
    expect(words.locator("strong")).to_have_text("bold text")
    expect(words.locator("li")).to_have_text(["first item", "second code"])
    expect(words.locator("td")).to_have_text(["Earth", "1"])
    expect(words.locator("pre code")).to_have_text('print("1 < 2")')
    assert page.locator(".words script, .words img, .words a").count() == 0
    expect(words).to_contain_text("<script>window.hacked = 1</script>")
    assert page.evaluate("window.hacked") is None
    words.locator("td [data-word]").first.click()
    expect(page.locator(".inspector li.chosen")).to_contain_text("| Ea")
    # every drawn word belongs to the token that wrote it
    for word in words.locator("[data-word]").all():
        piece = pieces(MARKDOWN)[int(word.get_attribute("data-word"))]
        assert word.inner_text().strip() in piece


def test_a_tool_call_is_a_card(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "calculate 12*7")
    expect(page.locator(".tool")).to_have_text(re.compile(r"Calculator.*12\*7.*84"))
    expect(page.locator(".words")).to_contain_text("The result is 84.")
    ask(page, "history")
    expect(page.locator(".words").last).to_contain_text("tool:84|assistant:The result is 84.|user:history")


def test_what_was_said_and_computed_is_read_again_as_it_was(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    calls = [
        {"type": "call", "id": id, "name": "calculator", "arguments": json.dumps({"expression": sum})}
        for id, sum in (("a", "1+1"), ("b", "2*9"))
    ]
    results = [{"type": "result", "id": "b", "content": "18"}, {"type": "result", "id": "a", "content": "2"}]
    scripted(page, token("Let me compute."), *calls, *results, token("2 and 18."))
    ask_to_the_end(page, "two sums")
    expect(page.locator(".tool strong")).to_have_text(["2", "18"])
    page.unroute("**/api/chat")
    ask_to_the_end(page, "history")
    read = "user:two sums|assistant:Let me compute.|tool:2|tool:18|assistant:2 and 18.|user:history"
    expect(page.locator(".words").last).to_have_text(read)
    assert [call.id for call in live.voice.asked[-1][0][1].tool_calls] == ["a", "b"]  # one message, as it was written


def test_settings_reach_the_model(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog", name="Settings")
    dialog.get_by_label("Temperature").fill("0")
    expect(dialog.get_by_label("Longest answer")).to_have_attribute("max", "512")
    dialog.get_by_label("Longest answer").fill("32")
    dialog.get_by_label("System prompt").fill("Be kind.")
    page.keyboard.press("Escape")
    ask(page, "long")
    expect(page.locator(".foot")).to_contain_text("cut at the token limit")
    messages, sampling, _ = live.voice.asked[-1]
    assert (sampling.temperature, sampling.max_tokens, messages[0].role, messages[0].content) == (
        0,
        32,
        "system",
        "Be kind.",
    )


def test_enter_that_ends_chinese_input_does_not_send(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    page.get_by_role("textbox", name="Message").focus()
    keys = page.context.new_cdp_session(page)
    keys.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    keys.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **enter})
    keys.send("Input.insertText", {"text": "你好"})
    expect(page.get_by_role("textbox", name="Message")).to_have_value("你好")
    expect(page.locator(".question")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("你好")


def test_a_failed_answer_says_so_in_the_readers_language(live: LiveServer, open_page: Open) -> None:
    said = {"break": "服务器在写这条回答时出错了。", "nan": "模型算不出数了（NaN）。"}
    page = open_page(live.url)
    ask(page, "break")
    expect(page.get_by_role("alert")).to_contain_text("The server failed while it wrote this answer.")
    for question, told in said.items():
        page = open_page(live.url, locale="zh-CN")
        page.get_by_role("textbox").fill(question)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text(told)
    page.reload()
    page.get_by_role("button", name="切换到英文").click()
    expect(page.get_by_role("alert")).to_have_text("The model computes no numbers any more (NaN).")


def test_a_question_that_failed_is_not_in_the_way_of_the_next(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    # any other status than 503 would be an error in the console
    page.route("**/api/chat", lambda route: route.fulfill(response=route.fetch(), status=503))
    ask(page, "x" * 1_000_000)
    expect(page.get_by_role("alert")).to_have_text("This message is longer than the model can read.")
    page.unroute("**/api/chat")
    ask_to_the_end(page, "history")
    expect(page.locator(".words").last).to_have_text("user:history")

    # of a conversation that is too long as a whole the newest turns are read
    answers = [{"parts": [], "state": "done"}]
    turns = [{"question": str(n) + "x" * 400_000, "answers": answers, "shown": 0} for n in range(3)]
    page.evaluate("turns => { localStorage.clear(); localStorage['liuli.turns'] = turns }", json.dumps(turns))
    other = page.context.new_page()
    other.goto(live.url)
    ask_to_the_end(other, "hello")
    assert [m.content[0] for m in live.voice.asked[-1][0] if m.role == "user"] == ["1", "2", "h"]


def test_an_old_question_can_be_asked_differently(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    ask_to_the_end(page, "second")
    expect(page.locator(".foot")).to_have_count(2)
    box = page.get_by_role("textbox", name="Message")
    box.fill("not sent yet")
    page.get_by_role("button", name="Edit").first.click()
    expect(box).to_have_value("hello")
    page.keyboard.press("Escape")  # nothing has happened
    expect(box).to_have_value("not sent yet")
    page.get_by_role("button", name="Edit").first.click()
    page.reload()
    expect(page.locator(".bubble")).to_have_text(["hello", "second"])
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".edited")).to_have_count(0)
    page.get_by_role("button", name="Edit").first.click()
    ask_to_the_end(page, "hello again")
    expect(page.locator(".bubble")).to_have_text(["hello again"])
    expect(box).to_have_value("not sent yet")  # after the reload, too
    box.fill("\n  return x\n    y\n")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble").last).to_have_text("  return x\n    y", use_inner_text=True)


def test_a_tab_that_changed_nothing_leaves_the_conversation_of_another(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "hello")
    other = page.context.new_page()
    other.goto(live.url)
    ask(page, "second")
    expect(other.locator(".bubble")).to_have_text(["hello", "second"])  # the same conversation goes on in both
    page.get_by_role("button", name="New chat").click()
    ask_to_the_end(page, "something else")
    expect(other.locator(".bubble")).to_have_text(["hello", "second"])  # another one does not take its place
    other.reload()
    expect(other.locator(".bubble")).to_have_text(["hello", "second"])
    third = page.context.new_page()  # a new tab opens the newest
    third.goto(live.url)
    expect(third.locator(".bubble")).to_have_text(["something else"])


def test_no_conversation_is_lost_to_another_tab_or_to_a_new_chat(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "slow"), pause=0.03) as live:
        page = open_page(live.url)
        ask_to_the_end(page, "hello")
        page.get_by_role("button", name="New chat").click()
        back = page.get_by_role("button", name="Back to the last conversation")
        back.click()
        expect(page.locator(".bubble")).to_have_text(["hello"])
        other = page.context.new_page()
        other.goto(live.url)
        expect(other.locator(".bubble")).to_have_text(["hello"])
        ask(page, "here")
        ask(other, "there")  # at the same time
        for tab, question in ((page, "here"), (other, "there")):
            expect(tab.locator(".foot")).to_have_count(2)
            tab.reload()
            expect(tab.locator(".bubble")).to_have_text(["hello", question])
            expect(tab.locator(".words").last).to_contain_text(question)
        ask(page, "long")
        expect(page.locator(".words").last).to_contain_text("word3")
        page.get_by_role("button", name="New chat").click()  # while it is being written
        back.click()
        expect(page.locator(".foot").last).to_contain_text("stopped")
        for n in range(25):
            page.evaluate("n => localStorage['liuli.old' + n] = '[]'", n)
        page.evaluate("localStorage['liuli.conversations'] = JSON.stringify([...Array(25).keys()].map(n => 'old' + n))")
        ask_to_the_end(page, "again")
        names = json.loads(page.evaluate("localStorage['liuli.conversations']"))
        assert len(names) == 20 and page.evaluate("localStorage['liuli.old24']") is None


def test_copying_works_without_the_browsers_clipboard_and_says_so_only_then(live: LiveServer, open_page: Open) -> None:
    page = open_page("about:blank")
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', {value: undefined})")
    page.goto(live.url)
    ask_to_the_end(page, "hello")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    page.get_by_role("textbox", name="Message").focus()
    page.keyboard.press("Control+V")
    expect(page.get_by_role("textbox", name="Message")).to_have_value(page.locator(".words").inner_text().strip())
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    page.evaluate("document.execCommand = () => false")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_timeout(100)
    expect(page.get_by_role("button", name="Copied")).to_have_count(0)


def test_a_reload_shows_the_end_of_the_last_answer(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    ask_to_the_end(page, "long")
    page.reload()
    page.set_viewport_size({"width": 700, "height": 400})  # everything moves after it was drawn
    expect(page.locator(".foot")).to_be_in_viewport(ratio=1)
    page.mouse.move(300, 200)
    page.mouse.wheel(0, -300)
    expect(page.locator(".foot")).not_to_be_in_viewport()
    page.set_viewport_size({"width": 600, "height": 400})
    page.wait_for_timeout(100)
    expect(page.locator(".foot")).not_to_be_in_viewport()  # who reads further up is left there


def test_what_does_not_fit_is_told_by_its_cause(tmp_path: Path, open_page: Open) -> None:
    with LiveServer(make_model(tmp_path / "tiny"), context=100) as live:
        page = open_page(live.url)
        page.evaluate("""localStorage.setItem("liuli.settings", '{"system": "%s"}')""" % ("word " * 90))
        page.reload()
        # any other status than 503 would be an error in the console
        page.route("**/api/chat", lambda route: route.fulfill(response=route.fetch(), status=503))
        for question, said in (("hello", "Shorten it in Settings"), ("word " * 90, "longer than the model can read")):
            ask(page, question)
            expect(page.get_by_role("alert").last).to_contain_text(said)
        page.unroute("**/api/chat")
        page.evaluate("localStorage.clear()")
        page.reload()
        ask_to_the_end(page, "long")
        expect(page.locator(".foot")).to_contain_text("context is full")  # not the reader's own limit of 512


def test_nearly_certain_and_nearly_impossible_look_like_that(live: LiveServer, open_page: Open) -> None:
    page = open_page(live.url)
    shares = {"\ufffd": 0.998, "b": 0.0012, "c": 0.00002}
    others = [{"id": n, "text": text, "logprob": math.log(p)} for n, (text, p) in enumerate(shares.items())]
    events = [{"type": "token", **others[0], "alternatives": others}, {"type": "done", "stopped_by": "end"}]
    body = "".join(json.dumps(event) + "\n" for event in events)
    page.route("**/api/chat", lambda route: route.fulfill(body=body))
    ask_to_the_end(page, "hello")
    page.locator(".word").first.click()
    expect(page.locator(".inspector .percent")).to_have_text(["99.8%", "0.1%", "<0.1%", "<0.1%"])
    expect(page.locator(".inspector li.chosen")).to_contain_text("part of a character")


def test_the_page_needs_nothing_from_elsewhere(live: LiveServer, open_page: Open, tmp_path: Path) -> None:
    page = open_page("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(live.url)
    ask_to_the_end(page, "markdown")
    assert asked and all(url.startswith(live.url) for url in asked)
