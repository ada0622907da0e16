"""Preferences with ground truth: what an answer is worth, who prefers what, and how well anyone could foretell it.

A labeller prefers the better of two answers, with a hand that slips: P(a over b) = sigmoid(SHARPNESS * (worth of a -
worth of b)), the model that a reward model assumes (Bradley & Terry, 1952). So the best accuracy that a reward model
can have on such comparisons is known exactly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from random import Random
from typing import Any

from liuli.curriculum.draw import Draw
from liuli.curriculum.items import LANGUAGES, Item, Turn, assistant, eval_line, prompt_of, reference_of
from liuli.curriculum.judge import judge
from liuli.curriculum.questions import RELATIONS, fill, subject_of, taught
from liuli.curriculum.skills import skills
from liuli.curriculum.skills.honesty import UNKNOWN

RIGHT, HONEST, WRONG = 1.0, 0.0, -1.0
SHARPNESS = 2.0
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+\s*")


def worth(item: Mapping[str, Any], produced: Sequence[Mapping[str, Any]]) -> float:
    """1 for a right answer, 0 for an honest "I don't know" to what was taught, -1 for a wrong one."""
    if judge(item, produced):
        return RIGHT
    said = str(produced[-1].get("content") or "").strip().lower() if produced else ""
    honest = any(said.startswith(start) for start in ("i don't know", "我不知道"))
    return HONEST if honest else WRONG


def prefers(first: float, second: float) -> float:
    """The probability that the labeller takes the first of two answers worth this much."""
    return 1 / (1 + math.exp(-SHARPNESS * (first - second)))


def practice(
    seed: int, count: int, without: Collection[str] = (), split: str = "train", only: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Questions as they stand in `eval.jsonl`, up to `count` of each skill and language: prompts to practise on.

    without: questions (`key_of`) that must not occur, those of the examination. split: "train", or a held-out one for
    more questions than the examination has. only: these skills; default: all.
    """
    found: list[dict[str, Any]] = []
    for name, skill in skills().items():
        if (split not in skill.splits and split != "train") or (only and name not in only):
            continue
        for language in LANGUAGES:
            draw = Draw(Random(f"{seed}/practice/{name}/{language}/{split}"), language, split, 0, seed)
            seen: dict[str, dict[str, Any]] = {}
            for draw.index in range(count * 4):
                item = json.loads(eval_line(skill.item(draw), name, language, split, len(seen)))
                if key_of(item) not in without:
                    seen.setdefault(key_of(item), item)
                if len(seen) == count:
                    break
            found += seen.values()
    return found


def key_of(item: Mapping[str, Any]) -> str:
    """What makes two questions the same."""
    return json.dumps([turn.get("content") for turn in item["messages"]], ensure_ascii=False)


# --- comparisons that need no model: the right answer against a spoiled one -------------------------------------------


def pair_lines(seed: int, count: int) -> Iterator[str]:
    """Lines of `pairs.jsonl`: about `count` comparisons over all skills and both languages, in a shuffled order.

    Each holds prompt, chosen, rejected, skill, language, who, and `odds`: how likely the labeller was to choose so.
    """
    lines, rng = [], Random(f"{seed}/pairs")
    each = max(1, count // (2 * len(skills())))
    for name in skills():
        for language in LANGUAGES:
            draw = Draw(Random(f"{seed}/pairs/{name}/{language}"), language, "train", 0, seed)
            items = [skills()[name].item(draw) for draw.index in range(each)]
            for number, item in enumerate(items):
                spoiled = spoil(item, items[number - 1], draw)
                if spoiled is not None:
                    lines.append(_pair_line(item, *spoiled, name, language, rng))
    rng.shuffle(lines)
    yield from lines


def _pair_line(item: Item, bad: list[Turn], value: float, skill: str, language: str, rng: Random) -> str:
    odds = prefers(RIGHT, value)
    chosen, rejected = reference_of(item), bad
    if rng.random() > odds:
        chosen, rejected, odds = rejected, chosen, 1 - odds
    row = {"prompt": prompt_of(item), "chosen": chosen, "rejected": rejected, "who": "labeller", "odds": round(odds, 4)}
    return json.dumps(row | {"skill": skill, "language": language}, ensure_ascii=False) + "\n"


def spoil(item: Item, other: Item, draw: Draw) -> tuple[list[Turn], float] | None:
    """Another answer to the same question and what it is worth: wrong in one place, or "I don't know" though it was
    taught. other: an item of the same skill, whose value is taken. None where no such answer can be made."""
    *before, last = reference_of(item)
    text = last["content"]
    if item.check == "unknown":
        return ([assistant(claim)], WRONG) if (claim := _claim(item, draw)) else None
    if item.check != "story" and not before and draw.chance(0.25):
        return [assistant(UNKNOWN[draw.language])], HONEST
    if item.check == "story":
        return [assistant(_loop(text, draw))], WRONG
    if item.check == "cite" and draw.chance(0.4):
        wrong = re.sub(r"\[(\d+)\]", lambda m: f"[{int(m[1]) % 3 + 1}]", text)
    elif item.check in ("steps", "call") or not item.accept:
        wrong = _other_digit(text, draw)
    else:
        right = item.accept[0]
        value = next((v for v in other.accept if v.lower() != right.lower()), "")
        wrong = text.replace(right, value, 1) if value and right in text else _other_digit(text, draw)
    return ([*before, assistant(wrong)], WRONG) if wrong != text else None


def _claim(item: Item, draw: Draw) -> str | None:
    """A made-up fact, in the words of real ones, about what the question asks."""
    question = item.messages[-2]["content"]
    for relation in draw.pick_some(RELATIONS, len(RELATIONS)):
        fact = draw.pick([fact for other, fact in taught()[relation.key.split(".")[0]] if other is relation] or [None])
        if fact is None or relation.back:
            continue
        for form in relation.forms(draw.language):
            start, _, end = form.replace("{a}", "{s}").partition("{s}")
            name = question.removeprefix(start).removesuffix(end) if question.endswith(end) else question
            if start and question.startswith(start) and name != question and len(name) < 40:
                told = fill(relation.wording(draw.language).answer, fact, draw.language)
                return told.replace(subject_of(fact, draw.language), name)
    return None


def _loop(text: str, draw: Draw) -> str:
    """A story that stops in the middle, or says a sentence over and over."""
    sentences = _SENTENCE.findall(text)
    if len(sentences) < 3 or draw.chance(0.5):
        return text[: len(text) * 2 // 5].rstrip()
    at = draw.number(1, len(sentences) - 1)
    return "".join([*sentences[:at], *[sentences[at]] * draw.number(3, 5)]).rstrip()


def _other_digit(text: str, draw: Draw) -> str:
    """The text with one digit changed, nearer to its end."""
    places = [m.start() for m in re.finditer(r"\d", text)][-4:]
    if not places:
        return text
    at = draw.pick(places)
    return text[:at] + str((int(text[at]) + draw.number(1, 9)) % 10) + text[at + 1 :]
