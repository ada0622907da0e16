"""The tool loop: calls are run, their results read, and rows at different points go together."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from liuli.engine import MAX_CALLS, TOOLS, Ended, Sampling, Token, reply, reply_many, turns
from liuli.engine.chat import REMEMBERED, fit, polled_reply, trimmed
from liuli.engine.constraints import Constraint
from liuli.errors import LiuliError
from liuli.text.chat import SHORT, Message, render, skeleton
from tests.engine.conftest import byte_tokenizer, scripted

T = byte_tokenizer()
GREEDY = Sampling(temperature=0, max_tokens=100)


def call(expression: str) -> list[int]:
    return [T.call, *T.encode(f'calculator {{"expression": "{expression}"}}'), T.end]


SCRIPT = {
    "What is 6*7?": call("6*7"),
    "42": [*T.encode("It is 42."), T.end],
    "Twice?": [*T.encode("First. "), *call("1/3")],
    "0.333333": call("2/3"),
    "0.666667": [T.think, *T.encode("done"), T.end_think, *T.encode("Both."), T.end],
    "For ever?": call("1"),
    "1": call("1"),
    "Hi": [*T.encode("Hello"), T.end],
    "Half?": [T.call, *T.encode("calculator {")],
    "Broken?": [T.call, *T.encode("calculator {"), T.end],
    "Around?": [*T.encode("a"), T.think, *T.encode("b"), T.end_think, *T.encode("bc"), T.end],
    "Border?": [*T.encode("琉")[:2], T.think, *T.encode("x"), T.end_think, *T.encode("y"), T.end],
    "error: arguments are not JSON": [*T.encode("Sorry."), T.end],
}


def user(text: str) -> list[Message]:
    return [Message("user", text)]


def shapes(messages: list[Message]) -> list[tuple[str, str, int]]:
    return [(message.role, message.content, len(message.tool_calls)) for message in messages]


def test_a_call_is_run_and_the_answer_goes_on_with_its_result() -> None:
    produced = reply_many(scripted(SCRIPT), [user("What is 6*7?")], GREEDY)[0]
    assert shapes(produced) == [("assistant", "", 1), ("tool", "42", 0), ("assistant", "It is 42.", 0)]
    assert produced[1].tool_call_id == produced[0].tool_calls[0].id


def test_streamed_and_batched_replies_are_the_same_messages() -> None:
    questions = ["What is 6*7?", "Twice?", "Hi", "Half?", "Broken?", "For ever?", "Border?"]
    engine = scripted(SCRIPT, rows=3)
    for question, produced in zip(questions, reply_many(engine, [user(q) for q in questions], GREEDY), strict=True):
        streamed = list(reply(engine, user(question), GREEDY))
        tokens = [part for part in streamed if isinstance(part, Token)]
        messages = [part for part in streamed if isinstance(part, Message)]
        assert messages == produced[:-1]
        assert tokens[-1].stopped_by is not None
        assert "".join(token.text for token in tokens).endswith(produced[-1].content)


def test_calls_and_thoughts_are_not_shown_as_text() -> None:
    streamed = list(reply(scripted(SCRIPT), user("Twice?"), GREEDY))
    assert "".join(part.text for part in streamed if isinstance(part, Token)) == "First. Both."


def test_while_one_answer_calls_or_thinks_the_others_are_told_a_token_a_turn() -> None:
    engine = scripted(SCRIPT)
    calling, talking = (polled_reply(engine, user(question), GREEDY) for question in ("What is 6*7?", "Hi"))
    told = []
    for turn in range(len("Hello") + 2):  # one in which it is handed in, and one for the end token
        list(itertools.takewhile(lambda event: event is not None, calling))
        told += itertools.takewhile(lambda event: event is not None, talking)
        shown = "".join(token.text for token in told if isinstance(token, Token))
        assert shown == "Hello"[:turn] and engine.stats.steps == turn


def test_what_is_held_back_at_a_control_token_is_shown_before_it() -> None:
    streamed = list(reply(scripted(SCRIPT), user("Border?"), GREEDY))
    assert "".join(part.text for part in streamed if isinstance(part, Token)) == "\ufffdy"


def test_the_answer_after_a_call_draws_other_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted(SCRIPT)
    seeds, poll = [], engine.poll
    monkeypatch.setattr(engine, "poll", lambda prompt, each, **_: seeds.append(each.seed) or poll(prompt, each))
    list(reply(engine, user("Twice?"), Sampling(seed=5, max_tokens=100)))
    assert seeds == [5, 6, 7]


def test_a_model_that_calls_for_ever_is_stopped() -> None:
    engine, sampling = scripted(SCRIPT), Sampling(temperature=0, max_tokens=200)
    produced = reply_many(engine, [user("For ever?")], sampling)[0]
    assert [message.role for message in produced] == ["assistant", "tool"] * MAX_CALLS + ["assistant"]
    assert sum(isinstance(part, Message) for part in reply(engine, user("For ever?"), sampling)) == 2 * MAX_CALLS


@pytest.mark.parametrize("calls", [1, 1.5, 2])
def test_max_tokens_are_those_of_the_whole_answer_with_its_calls(calls: float) -> None:
    most = int(calls * len(call("1")))
    least = len(call("1")) - 1  # with which a call may just end; what follows it has not so many left
    engine, sampling = scripted(SCRIPT), Sampling(temperature=0, max_tokens=most, min_tokens=least)
    turn = turns(engine, [user("For ever?")], sampling)[0]
    assert sum(len(answer.tokens) for answer in turn.answers) == most
    *streamed, end = reply(engine, user("For ever?"), sampling)
    assert engine.stats.written == most and isinstance(end, Token) and end.stopped_by == "length"
    assert sum(isinstance(part, Message) for part in streamed) == 2 * int(calls)


def test_a_call_of_what_is_run_elsewhere_ends_the_answer_and_all_that_was_written_is_counted() -> None:
    there = [T.call, *T.encode('weather {"city": "Paris"}'), T.end]
    engine = scripted({**SCRIPT, "42": there})
    told = list(polled_reply(engine, user("What is 6*7?"), GREEDY, declared=["weather"]))
    assert told[-1] == Ended("call", len(call("6*7")) + len(there)) == Ended("call", engine.stats.written)
    assert [message.role for message in told if isinstance(message, Message)] == ["assistant", "tool", "assistant"]


def test_an_answer_whose_tools_result_does_not_fit_ends_with_it_as_too_long() -> None:
    engine = scripted(SCRIPT, context=len(render(user("What is 6*7?"), T, answer=True).tokens) + len(call("6*7")))
    produced = reply_many(engine, [user("What is 6*7?")], GREEDY)[0]
    *streamed, end = reply(engine, user("What is 6*7?"), GREEDY)
    assert [message.role for message in produced] == ["assistant", "tool"]
    assert [part for part in streamed if isinstance(part, Message)] == produced
    assert isinstance(end, Token) and (end.text, end.stopped_by) == ("", "length")


def test_a_call_that_must_come_must_come_once() -> None:
    form = Constraint("tools", '{"calculator": {"type": "object"}}', required=True)
    sampling = Sampling(temperature=0, max_tokens=100, constraint=form)
    batched = reply_many(scripted(SCRIPT), [user("What is 6*7?"), user("Hi")], [sampling, GREEDY])[0]
    *streamed, end = reply(scripted(SCRIPT), user("What is 6*7?"), sampling)
    assert shapes(batched) == [("assistant", "", 1), ("tool", "42", 0), ("assistant", "It is 42.", 0)]
    assert [part for part in streamed if isinstance(part, Message)] == batched[:-1]
    assert isinstance(end, Token) and end.stopped_by == "end"


def test_half_a_call_is_not_run() -> None:
    turn = turns(scripted(SCRIPT), [user("Half?")], Sampling(temperature=0, max_tokens=8))[0]
    assert [message.role for message in turn.messages] == ["assistant"]
    assert turn.answers[0].stopped_by == "length"


def test_a_stop_string_is_not_part_of_the_message() -> None:
    sampling = Sampling(temperature=0, stop=("42.",))
    assert reply_many(scripted(SCRIPT), [user("42")], sampling)[0][0].content == "It is "


@pytest.mark.parametrize(
    ("question", "stop", "shown"),
    [
        ("What is 6*7?", ":", ["", "It is 42."]),  # in the JSON of the call only
        ("What is 6*7?", "7", ["", "It is 42."]),
        ("What is 6*7?", "2.", ["", "It is 4"]),
        ("Twice?", "done", ["First. ", "", "Both."]),  # in the thought only
        ("Twice?", "th", ["First. ", "", "Bo"]),
        ("Twice?", "st", ["Fir"]),
        ("Around?", "ab", ["a", "bc"]),  # what stands on both sides of a thought is not one string
        ("Around?", "b", ["a"]),
    ],
)
def test_stop_strings_cut_what_is_shown_and_never_a_call_or_a_thought(
    question: str, stop: str, shown: list[str]
) -> None:
    engine, sampling = scripted(SCRIPT), Sampling(temperature=0, max_tokens=100, stop=(stop,))
    produced = reply_many(engine, [user(question), user("Hi")], sampling)[0]
    streamed = list(reply(engine, user(question), sampling))
    assert "".join(part.text for part in streamed if isinstance(part, Token)) == "".join(shown)
    assert "".join(message.content for message in produced if message.role == "assistant") == "".join(shown)
    assert [part for part in streamed if isinstance(part, Message)] == produced[:-1]


def test_a_long_conversation_loses_its_oldest_turns_and_keeps_the_system_message() -> None:
    engine = scripted(SCRIPT, context=100)
    system = Message("system", "Be kind.")
    turns_before = [Message("user", "x" * 30), Message("assistant", "y" * 30)]
    last = Message("user", "Hi")
    assert fit([system, *turns_before * 5, last], engine, GREEDY) == render([system, last], T, answer=True).tokens
    assert fit([*turns_before, last], engine, GREEDY) == render([*turns_before, last], T, answer=True).tokens
    with pytest.raises(LiuliError, match="question has"):
        fit([system, Message("user", "x" * 100)], engine, GREEDY)


def test_old_turns_make_room_for_a_long_answer_and_newer_ones_for_a_short_one_only() -> None:
    engine, left = scripted(SCRIPT, context=200), dict[int, int]()
    for length in range(1, 40):
        talk = [Message("user", "x" * length), Message("assistant", "y" * length)] * 8
        prompt = fit([*talk, Message("user", "Hi")], engine, Sampling(max_tokens=200))
        left[length] = prompt.count(T.user)
        assert len(prompt) <= 100 or (left[length] <= 1 + REMEMBERED and len(prompt) <= 150)
        assert len(prompt) + 2 * length + 4 > (100 if left[length] > REMEMBERED else 150) or left[length] == 9
    assert left[1] == 9 and 1 + REMEMBERED in left.values() and left[39] == 2


def test_a_reply_that_outgrows_its_batch_goes_on_in_another() -> None:
    long = "3" * 90
    script = {"Long?": call("1"), long: [*T.encode("So long."), T.end], "Hi": [*T.encode("Hello"), T.end]}
    tools = {"calculator": replace(TOOLS["calculator"], run=lambda _: long)}
    sampling = Sampling(temperature=0, max_tokens=45)  # 8 + 45 slots at first, 130 and more after the call
    first, second = turns(scripted(script, context=2000), [user("Long?"), user("Hi")], sampling, tools)
    assert first.messages[-1].content == "So long." and second.messages[-1].content == "Hello"


@pytest.mark.parametrize("system", [0, 1])
@pytest.mark.parametrize("turns", [1, 2, 3, 40])
def test_a_conversation_loses_as_few_turns_as_must_go_and_is_measured_a_few_times(system: int, turns: int) -> None:
    said = [Message("system", "s")] * system + [Message("user", "q"), Message("assistant", "a")] * turns
    said[-1:] = []
    for room in range(system, len(said) + 1):
        measured: list[int] = []

        def size(kept: list[Message], measured: list[int] = measured) -> int:
            measured.append(len(kept))
            return len(kept)

        kept, length = trimmed(said, size, lambda _, length, room=room: length <= room)  # type: ignore[misc]
        least = next(n for n in range(turns) if len(said) - 2 * n <= max(room, system + 1))
        assert kept == said[:system] + said[system + 2 * least :] and length == len(kept)
        assert len(measured) <= 8


def test_skeletons_that_are_kept_are_bounded_in_size_not_only_in_number() -> None:
    render([Message("user", "q")], T, answer=True)  # also looks at the template itself
    skeleton.cache_clear()
    for count in (1, SHORT // 2 - 1, SHORT // 2, 300):
        render([*[Message("user", "q"), Message("assistant", "a")] * count, Message("user", "q")], T, answer=True)
    assert skeleton.cache_info().currsize == 2
