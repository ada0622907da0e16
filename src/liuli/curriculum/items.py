"""One exercise of the classroom, and its forms in the files.

An `Item` is a whole conversation that ends in the right answer, with what a judge needs to know. In `chat.jsonl` it is
the conversation alone; in `eval.jsonl` it stops at the last user message and the answer stands beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Turn = dict[str, Any]  # one OpenAI chat message
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation with a known right answer.

    messages: all turns; the last one is the assistant's reference answer.
    check: how the answer is judged, a name in `judge.CHECKS`.
    accept: the values that count as right, first the reference's, then what will do where nothing else is said ("12"
    of 12 months); of a story, what must occur; none: the whole reference answer.
    reject: values that must not occur beside the right one.
    """

    messages: list[Turn]
    check: str = "value"
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()


def user(content: str) -> Turn:
    """What a person says."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Turn:
    """What the model should say."""
    return {"role": "assistant", "content": content}


def calculator(expression: str, result: str) -> list[Turn]:
    """A call of the calculator and what it gave back."""
    function = {"name": "calculator", "arguments": f'{{"expression": "{expression}"}}'}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return [call, {"role": "tool", "tool_call_id": "1", "content": result}]


def asked(question: str, answer: str, *accept: str, check: str = "value", reject: tuple[str, ...] = ()) -> Item:
    """The commonest item: one question, one answer."""
    return Item([user(question), assistant(answer)], check, accept, reject)


def after(before: Sequence[Item], last: Item) -> Item:
    """The last item, with others before it in the same conversation."""
    return replace(last, messages=[turn for item in (*before, last) for turn in item.messages])


def prompt_of(item: Item) -> list[Turn]:
    """The turns up to the last user message: what a model is given."""
    last = max(i for i, turn in enumerate(item.messages) if turn["role"] == "user")
    return item.messages[: last + 1]


def reference_of(item: Item) -> list[Turn]:
    """The turns after the last user message: what a perfect model produces, its tool messages included."""
    return item.messages[len(prompt_of(item)) :]


def chat_line(item: Item, skill: str, language: str) -> str:
    """The item as a line of `chat.jsonl`."""
    return _line({"messages": item.messages, "skill": skill, "language": language})


def text_line(text: str, skill: str, language: str) -> str:
    """A document as a line of `text.jsonl`."""
    return _line({"text": text, "skill": skill, "language": language})


def eval_line(item: Item, skill: str, language: str, split: str, number: int) -> str:
    """The item as a line of `eval.jsonl`."""
    return _line(
        {
            "id": f"{skill}.{language}.{split}.{number}",
            "skill": skill,
            "language": language,
            "split": split,
            "messages": prompt_of(item),
            "answer": item.messages[-1]["content"],
            "check": item.check,
            "accept": list(item.accept) or ([] if item.check == "story" else [item.messages[-1]["content"]]),
            "reject": list(item.reject),
        }
    )


_PIECES = re.compile(r"[A-Za-z]+|\d{1,2}|[\u3400-\u9fff]|\s(?=\d)|[^\sA-Za-z\d\u3400-\u9fff]")


def estimated_tokens(text: str) -> float:
    """Tokens of a text under a vocabulary of about 3,000 learned from the classroom; measured, see docs/notebook.md."""
    total = 0.0
    for piece in _PIECES.findall(text):
        total += (1.42 if piece.isascii() else 0.64) if piece.isalpha() else 1.0
    return total


def item_tokens(item: Item) -> float:
    """Estimated tokens of a conversation with the chat template's own."""
    total = 1.0
    for turn in item.messages:
        total += 2 + estimated_tokens(turn["content"])
        for call in turn.get("tool_calls", ()):
            total += 1 + estimated_tokens(call["function"]["name"] + " " + call["function"]["arguments"])
    return total


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _line(value: dict[str, Any]) -> str:
    return _encode(value) + "\n"
