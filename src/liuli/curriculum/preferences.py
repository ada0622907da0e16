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
from liuli.curriculum.questions import RELATIONS, fill, taught
from liuli.curriculum.skills import skills
from liuli.curriculum.skills.honesty import UNKNOWN

RIGHT, NEEDLESS, WRONG = 1.0, -0.5, -1.0
SHARPNESS = 2.0
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]+\s*")


def worth(item: Mapping[str, Any], produced: Sequence[Mapping[str, Any]]) -> float:
    """1 for a right answer, -0.5 for a needless "I don't know" (it was taught), -1 for a wrong one."""
    if judge(item, produced):
        return RIGHT
    said = str(produced[-1].get("content") or "").strip().lower() if produced else ""
    honest = any(said.startswith(start) for start in ("i don't know", "我不知道"))
    return NEEDLESS if honest and item["check"] != "unknown" else WRONG  # there it would be right: a claim followed it


def prefers(first: float, second: float) -> float:
    """The probability that the labeller takes the first of two answers worth this much."""
    return 1 / (1 + math.exp(-SHARPNESS * (first - second)))


def practice(
    seed: int,
    count: int,
    without: Collection[str] = (),
    split: str = "train",
    only: Collection[str] = (),
    classroom: int = 0,
) -> list[dict[str, Any]]:
    """Questions as they stand in `eval.jsonl`, up to `count` of each skill and language: prompts to practise on.

    without: questions (`key_of`) that must not occur, those of the examination. split: "train", or a held-out one for
    more questions than the examination has. only: these skills; default: all. classroom: the seed of the lessons, whose
    people are asked about; `seed` is that of chance.
    """
    found: list[dict[str, Any]] = []
    for name, skill in skills().items():
        if (split not in skill.splits and split != "train") or (only and name not in only):
            continue
        for language in LANGUAGES:
            chance = Random(f"{seed}/practice/{name}/{language}/{split}")
            draw = Draw(chance, language, split, 0, classroom, alone=True)
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

# What a labeller can see in an answer without knowing the fact itself, and its share of the comparisons: a model of a
# few million weights cannot learn in a minute to tell a wrong fact from a right one (55%), nor whether a passage says
# what is asked (67%; docs/notebook.md). What comparisons cannot teach, the ground truth grades in practice.
KINDS = {
    # a made-up fact about what does not exist, against "I don't know"
    "claim": (
        0.37,
        (
            *("unknown_country", "unknown_element", "unknown_animal", "unknown_person", "unknown_word"),
            *("unknown_attribute", "unknown_request", "cite_none"),
        ),
    ),
    # "I don't know" against the answer to what was taught
    "not known": (
        0.28,
        (
            *("capital", "currency", "animal_class", "animal_life", "works", "opposites", "famous_people"),
            *("translate_word", "translate_back", "translate_word", "translate_back", "remember_name"),
            *("element_symbol", "convert_units"),
        ),
    ),
    # a story that stops in the middle or goes round in circles
    "story": (0.12, ("story", "story_named")),
    # a passage cited by no number
    "citation": (0.15, ("cite_name", "cite_number")),
    # a result without the call that computes it
    "no call": (0.08, ("calculate_add", "calculate_subtract", "calculate_multiply", "problem_add", "convert_units")),
}
ASKED = (  # what two models are compared on: all of that, and what should stay as it is
    *(name for _, names in KINDS.values() for name in names),
    *("person_city", "person_job", "country_language"),
    *("remember_town", "add_steps", "greeting", "landmarks", "later"),
)
# what is practised: no stories, for one grade at the end of 160 tokens does not tell which of them were good, and a
# round would last as long as its longest answer (docs/notebook.md)
PRACTISED = tuple(name for name in ASKED if name not in KINDS["story"][1])
CLAIMED = {  # where an answer to such a question comes from, if none of its own wording is found
    "unknown_country": ("capital", "currency", "country_language"),
    "unknown_element": ("element_symbol", "element_number"),
    "unknown_animal": ("animal_class", "animal_life"),
    "unknown_person": ("person_city", "person_job"),
    "unknown_word": ("translate_word",),
    "unknown_attribute": ("capital", "country_language"),
    "unknown_request": ("capital", "colours_shapes", "translate_word", "calendar_facts"),
}


def pair_lines(seed: int, count: int) -> Iterator[str]:
    """Lines of `pairs.jsonl`: about `count` comparisons in both languages, in a shuffled order.

    Each holds prompt, chosen, rejected, kind, skill, language, who, and `odds` that the labeller would choose so.
    """
    lines, rng = [], Random(f"{seed}/pairs")
    for kind, (share, names) in KINDS.items():
        for place, name in enumerate(names):
            for language in LANGUAGES:
                chance = Random(f"{seed}/pairs/{kind}/{name}/{place}/{language}")
                draw = Draw(chance, language, "train", 0, seed, alone=True)
                for draw.index in range(max(1, round(share * count / len(names) / len(LANGUAGES)))):
                    item = skills()[name].item(draw)
                    lines.append(_pair_line(item, spoil(item, kind, name, draw), kind, name, language, rng))
    rng.shuffle(lines)
    yield from lines


def _pair_line(item: Item, bad: list[Turn], kind: str, skill: str, language: str, rng: Random) -> str:
    odds = prefers(RIGHT, NEEDLESS if kind == "not known" else WRONG)
    chosen, rejected = reference_of(item), bad
    if rng.random() > odds:
        chosen, rejected, odds = rejected, chosen, 1 - odds
    row = {"prompt": prompt_of(item), "chosen": chosen, "rejected": rejected, "who": "labeller", "odds": round(odds, 4)}
    return json.dumps(row | {"kind": kind, "skill": skill, "language": language}, ensure_ascii=False) + "\n"


def spoil(item: Item, kind: str, skill: str, draw: Draw) -> list[Turn]:
    """A worse answer to the question of the item, worse in the way that `kind` names."""
    last = reference_of(item)[-1]
    if kind == "claim":
        return [assistant(_claim(item, skill, draw))]
    if kind == "not known":
        return [assistant(UNKNOWN[draw.language])]
    if kind == "story":
        return [assistant(_loop(last["content"], draw))]
    if kind == "no call":
        return [last]
    return [assistant(_uncited(last["content"]))]


def _claim(item: Item, skill: str, draw: Draw) -> str:
    """A made-up fact about what the question asks, in the words of real ones."""
    question = item.messages[-2]["content"]
    if skill == "cite_none":
        return _uncited(_from_the_page(question, draw))
    for relation in draw.pick_some(RELATIONS, len(RELATIONS)):
        if relation.back or relation.key.split(".")[0] != skill.removeprefix("unknown_"):
            continue
        for form in relation.forms(draw.language):
            start, _, end = form.replace("{a}", "{s}").partition("{s}")
            if start and question.startswith(start) and question.endswith(end):
                fact = draw.pick([fact for other, fact in taught()[relation.key.split(".")[0]] if other is relation])
                return fill(relation.wording(draw.language).answer, fact, draw.language)
    other = Draw(draw.rng, draw.language, "train", draw.number(0, 9_999), draw.seed)
    claimed: str = skills()[draw.pick(CLAIMED[skill])].item(other).messages[-1]["content"]
    return claimed


def _uncited(text: str) -> str:
    return re.sub(r"\s*\[\d+\]", "", text)


def _from_the_page(page: str, draw: Draw) -> str:
    """What a passage says of something else, told of what was asked."""
    *lines, question = page.split("\n")
    line = draw.pick(lines)
    if draw.zh:
        asked = re.sub("^(请?告诉我|我想知道|你知道|能说说|请问)", "", question.partition("的")[0])
        told = line.partition("的")[0]
        return line.replace(told, asked) if "的" in question and len(asked) < 12 else line
    names = re.findall(r"(?<=[a-z] )[A-Z]\w+", question)
    others = re.findall(r"(?<=[a-z] )[A-Z]\w+", line)
    return line.replace(others[0], names[-1]) if names and others else line


def _loop(text: str, draw: Draw) -> str:
    """A story that stops in the middle, or says a sentence over and over."""
    sentences = _SENTENCE.findall(text)
    if len(sentences) < 3 or draw.chance(0.5):
        return text[: len(text) * 2 // 5].rstrip('.!?。！？”" ')  # never at a sentence's end
    at = draw.number(1, len(sentences) - 1)
    return "".join([*sentences[:at], *[sentences[at]] * draw.number(3, 5)]).rstrip()
