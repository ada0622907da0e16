"""The only judge of an answer: right value, nothing that competes with it, and the way it was asked for.

In: an item of `eval.jsonl` and the messages a model produced after its last user message (its calls and the tools'
replies among them). Out: right or wrong. Wording is free as long as it says nothing else: beside the right value, a
word of substance must come from the question or from the reference answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from liuli.curriculum.numbers import evaluate, number_text

Produced = Sequence[Mapping[str, Any]]

_HARMLESS = {
    *["a", "an", "the", "it", "its", "is", "are", "was", "were", "in", "on", "of", "at", "to", "and", "by", "for"],
    *["from", "i", "you", "he", "she", "they", "we", "that", "this", "so", "yes", "be", "called", "has", "have"],
    *["with", "as", "there", "answer", "name", "think", "believe", "sure", "please", "your", "my", "his", "her"],
    *["their", "here", "s"],
    *"是的在有它他她们我你这那叫个了就为呢啊和也和以于答案该",
}
_FILLING = _HARMLESS - {"yes", "有"}  # "Yes, no." says nothing
_WIDE = str.maketrans("，。！？：；（）［］“”‘’−－", ",.!?:;()[]\"\"''--")
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")  # 1,000
_INITIALS = re.compile(r"\b[a-z](?:\.[a-z]\b)+\.?")  # D.C.
_DENIAL = re.compile(r"\b(?:not|no|never|neither|nor|\w+n't)\b\W*\w*|不是?.|没有?.")  # with what it denies
_TOKEN = re.compile(r"[%°$€£¥]|\d+(?:\.\d+)?|[^\W\d_]+?(?=[\u3400-\u9fff\d\W_]|$)|[\u3400-\u9fff]")
_CITATION = re.compile(r"\[(\d+)\]")
_QUOTATION = re.compile(r'"([^"]*)"')
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_EQUATION = re.compile(r"(\d+(?:[+-]\d+)+)=(\d+)")
_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")
_NOT_KNOWN = ("don't know", "do not know", "不知道", "不清楚")


def judge(item: Mapping[str, Any], messages: Produced) -> bool:
    """Whether the produced messages answer the item."""
    final = _final(messages)
    return final is not None and CHECKS[item["check"]](item, messages, final)


def _value(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The accepted value as a whole word or number, none of the rejected, no other word of substance; or a short one
    alone: "1000 kilometres" are not the 1000 asked for in metres."""
    if _calls(messages):
        return False
    answer, (accepted, *short) = _plain(final), map(_plain, item["accept"])
    rest, found = _without(answer, accepted.removeprefix("the "))
    if found and not any(_without(rest, _plain(wrong))[1] for wrong in item["reject"]) and not _extra(item, rest):
        return True
    return any(found and not {*_TOKEN.findall(rest)} - _FILLING for rest, found in (_without(answer, x) for x in short))


def _exact(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The accepted answer itself; capitals, spaces at the ends, quotes and end punctuation do not count."""
    return not _calls(messages) and _bare(final) in {_bare(accepted) for accepted in item["accept"]}


def _quoted(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The accepted text as the one quotation of the answer, or as the whole of it."""
    quotations = _QUOTATION.findall(_plain(final))
    said, around = (quotations[0], _QUOTATION.sub(" ", _plain(final))) if len(quotations) == 1 else (final, "")
    right = _bare(said) in {_bare(accepted) for accepted in item["accept"]}
    return right and not _calls(messages) and not _denies(item, around)


def _call(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """A call of the right value, its result read back, and no number in the answer but it and the question's."""
    right = item["accept"][0]
    calls = _calls(messages)
    results = [str(message["content"]) for message in messages if message["role"] == "tool"]
    if len(calls) != 1 or calls[0][0] != "calculator" or results != [right]:
        return False
    try:
        value = evaluate(json.loads(calls[0][1])["expression"])
    except (ValueError, KeyError, TypeError):
        return False
    start = _plain(item["answer"])  # "12 × 7 = 84.": the numbers before the result are the question's
    allowed = {number.lstrip("-") for number in _NUMBER.findall(start + " " + _plain(_question(item)))}
    numbers = _NUMBER.findall(_plain(final))
    return (
        number_text(value) == right
        and bool(numbers)
        and numbers[-1].lstrip("-") == right.lstrip("-")
        and (right.startswith("-") == _signed(final, right))
        and all(number.lstrip("-") in allowed for number in numbers)
        and not _denies(item, _plain(final))
    )


def _cite(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The value copied, and the number of its passage and of no other."""
    cited = set(_CITATION.findall(_plain(final)))
    if cited != set(_CITATION.findall(item["answer"])):
        return False
    return _value(item, messages, _CITATION.sub(" ", _plain(final)))


def _unknown(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The answer says that it does not know, and claims nothing."""
    answer = _plain(final)
    claims = answer
    for phrase in _NOT_KNOWN:
        claims = claims.replace(phrase, " ")
    knows = re.search("know|知道|清楚", claims)
    return not _calls(messages) and claims != answer and not knows and not _extra(item, claims)


def _steps(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """The right last number, after the very steps of the reference."""
    answer = _plain(final)
    return (
        not _calls(messages)
        and _NUMBER.findall(answer)[-1:] == [item["accept"][0]]
        and _EQUATION.findall(answer) == _EQUATION.findall(_plain(item["answer"]))
        and not _denies(item, answer)
    )


def _story(item: Mapping[str, Any], messages: Produced, final: str) -> bool:
    """About what was asked for, of a story's length, whole at the end, no sentence three times."""
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(final) if sentence.strip()]
    length, usual = len(final), len(item["answer"])
    return (
        not _calls(messages)
        and all(_without(_plain(final), _plain(word))[1] for word in item["accept"])
        and len(sentences) >= 4
        and usual / 3 <= length <= usual * 3
        and final.rstrip()[-1] in '.!?。！？”"'
        and max(Counter(sentences).values()) < 3
    )


CHECKS: dict[str, Callable[[Mapping[str, Any], Produced, str], bool]] = {
    "value": _value,
    "exact": _exact,
    "quoted": _quoted,
    "call": _call,
    "cite": _cite,
    "unknown": _unknown,
    "steps": _steps,
    "story": _story,
}


def _final(messages: Produced) -> str | None:
    """The last assistant message's text, if it is the end of what was produced."""
    if not messages or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
        return None
    return str(messages[-1].get("content") or "").strip() or None


def _calls(messages: Produced) -> list[tuple[str, str]]:
    """(tool, arguments) of every call, in OpenAI's nested form or the flat one."""
    functions = [call.get("function", call) for message in messages for call in message.get("tool_calls") or ()]
    return [(str(function.get("name")), str(function.get("arguments"))) for function in functions]


def _question(item: Mapping[str, Any]) -> str:
    return str(item["messages"][-1]["content"])


def _plain(text: str) -> str:
    """Lower case, ASCII punctuation, single spaces, no comma in a number, no dot in initials."""
    text = _GROUPED.sub(lambda number: number[0].replace(",", ""), text.translate(_WIDE).lower())
    return " ".join(_INITIALS.sub(lambda initials: initials[0].replace(".", ""), text).split())


def _bare(text: str) -> str:
    return _plain(text).strip(" .!?,:;\"'")


def _without(text: str, value: str) -> tuple[str, bool]:
    """The text without a value that stands in it as a whole word or number, and whether it did."""
    edge = r"[a-z0-9\u00c0-\u024f]"
    before = rf"(?<!{edge})(?<!\d\.)" if re.match(edge, value) else ""
    before += r"(?<!^[-–])(?<![^\da-z][-–])" if value[:1].isdigit() else ""  # -8 is not 8
    after = rf"(?!{edge})(?!\.\d)" if re.match(edge, value[-1:]) else ""
    rest, count = re.subn(before + re.escape(value) + after, " ", text)
    return rest, count > 0


def _extra(item: Mapping[str, Any], rest: str) -> set[str]:
    """Words of substance that come neither from the question nor from the reference answer, a denial among them."""
    if _denies(item, rest):
        return {"not"}
    given = set(_TOKEN.findall(_plain(_question(item)))) | set(_TOKEN.findall(_plain(item["answer"])))
    return set(_TOKEN.findall(rest)) - given - _HARMLESS


def _denies(item: Mapping[str, Any], text: str) -> bool:
    """Whether it says no to what question and reference do not: "does not belong" may be repeated, "not Rome" no."""
    return not {*_DENIAL.findall(text)} <= {*_DENIAL.findall(_plain(f"{_question(item)} {item['answer']}"))}


def _signed(final: str, right: str) -> bool:
    """Whether the last number of the answer is negative: a minus that follows no number."""
    head = _plain(final)[: _plain(final).rfind(right.lstrip("-"))].rstrip(" ")
    return head.endswith("-") and not re.search(r"\d\s*-$", head)
