"""What the classroom promises: the same bytes, nothing held out in training, a judge that cannot be fooled."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from liuli.curriculum import judge, make, skills, worth
from liuli.curriculum.draw import Draw, held
from liuli.curriculum.invent import first_name, given_name, given_names, neighbours, stranger
from liuli.curriculum.items import LANGUAGES, Item, estimated_tokens, eval_line, item_tokens, reference_of
from liuli.curriculum.knowledge import knowledge
from liuli.curriculum.make import eval_items
from liuli.curriculum.numbers import evaluate, number_text
from liuli.curriculum.preferences import WRONG, spoil
from liuli.curriculum.questions import RELATIONS, article, fill, taught
from liuli.curriculum.skills import LARGEST_SHARE, LONGEST_TALK, chinese_titles
from liuli.curriculum.skills.arithmetic import write_steps
from liuli.curriculum.skills.citation import NAMED, NOT_THERE, NUMBERED, passages
from liuli.curriculum.skills.dialogue import distinct_dialogues, distinct_fillers, filler
from liuli.curriculum.skills.facts import SKILLS, answered
from liuli.curriculum.skills.smalltalk import TALK
from liuli.curriculum.skills.stories import count_expansions, distinct_sentences, grammar, story_names, write
from liuli.errors import UsageError
from liuli.files import verify_folder

FILES = ("text.jsonl", "chat.jsonl", "eval.jsonl", "about.json")


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("school") / "one"
    make(out, seed=3, size=900_000)
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def drawn(skill: str, language: str, count: int) -> Iterator[Item]:
    """Lessons of one skill."""
    draw = Draw(Random(1), language, "train", 0, 0)
    for draw.index in range(count):
        yield skills()[skill].item(draw)


def every_test(count: int) -> Iterator[tuple[dict[str, Any], Item]]:
    for name, skill in skills().items():
        for language in LANGUAGES:
            for split in skill.splits:
                for number, item in enumerate(eval_items(1, name, language, split, count)):
                    yield json.loads(eval_line(item, name, language, split, number)), item


def test_same_seed_gives_the_same_bytes_with_one_worker_and_with_two(school: Path, tmp_path: Path) -> None:
    make(tmp_path / "two", seed=3, size=900_000, workers=2)
    for name in FILES:
        assert (school / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_another_seed_gives_other_people_and_other_texts(school: Path, tmp_path: Path) -> None:
    make(tmp_path / "other", seed=4, size=100_000)
    assert {p.name for p in neighbours(3, "en")} != {p.name for p in neighbours(4, "en")}
    assert not set(lines(tmp_path / "other" / "chat.jsonl")[i]["messages"][0]["content"] for i in range(5)) <= {
        line["messages"][0]["content"] for line in lines(school / "chat.jsonl")
    }


def test_the_folder_is_whole_and_of_the_size_asked_for(school: Path) -> None:
    verify_folder(school)
    size = sum((school / name).stat().st_size for name in ("text.jsonl", "chat.jsonl"))
    assert 0.9 < size / 900_000 < 1.1


def test_breadth_forty_skills_three_thousand_facts_a_thousand_people_and_no_skill_over_eight_percent(
    school: Path,
) -> None:
    about = json.loads((school / "about.json").read_text())
    assert len(about["skills"]) >= 40
    assert about["facts"] >= 3_000
    assert about["people"] >= 1_000
    assert max(skill["share"] for skill in about["skills"].values()) <= LARGEST_SHARE == 0.08
    lessons = {of: sum(skill["chats"][of] for skill in about["skills"].values()) for of in ("en", "zh")}
    assert abs(lessons["en"] / lessons["zh"] - 1) < 0.1  # as many lessons in each language, whatever tokens they take
    chats = lines(school / "chat.jsonl")
    seen = {(skill, line["language"]) for line in chats for skill in line["skill"].split(", ")}
    assert seen == {(name, language) for name in skills() for language in LANGUAGES}


def test_every_skill_has_a_title_in_chinese() -> None:
    assert chinese_titles().keys() == skills().keys()
    assert not [title for title in chinese_titles().values() if re.search(r"[a-z_]", title)]


def test_people_ask_one_thing_after_another_a_tool_s_answer_among_them(school: Path) -> None:
    talks = [line for line in lines(school / "chat.jsonl") if ", " in line["skill"]]
    count = len(lines(school / "chat.jsonl"))
    assert 0.4 < len(talks) / count < 0.6
    assert {line["skill"].count(", ") for line in talks} == {1, 2, 3}
    after_a_tool = [line for line in talks if "tool" in [turn["role"] for turn in line["messages"][:-4]]]
    assert len(after_a_tool) > count / 50
    whole = Item([turn for line in talks for turn in line["messages"]])
    assert item_tokens(whole) / len(talks) < LONGEST_TALK


def test_nothing_held_out_is_in_training(school: Path) -> None:
    chats, texts = lines(school / "chat.jsonl"), lines(school / "text.jsonl")
    asked = {json.dumps(line["messages"][: i + 1]) for line in chats for i in range(len(line["messages"]))}
    said = {"en": "", "zh": ""}
    for language in LANGUAGES:
        own = [text["text"] for text in texts if text["language"] == language]
        own += [turn["content"] for line in chats if line["language"] == language for turn in line["messages"]]
        said[language] = "\n".join(own)
    words = set(re.findall(r"\w+", said["en"]))
    checked = Counter()
    for test in lines(school / "eval.jsonl"):
        if test["split"] != "train":
            assert json.dumps(test["messages"]) not in asked, test["id"]
        name = test["accept"][0] if test["accept"] else ""
        if test["split"] == "names" and test["check"] in ("value", "cite") and not name.isdigit():
            assert name not in (words if name.isascii() else said["zh"]), test["id"]
            checked[test["language"]] += 1
    assert min(checked.values()) > 200


def test_a_held_out_given_name_is_in_no_whole_name() -> None:
    draw = Draw(Random(0), "zh", "train", 0, 0)
    names = [invent(draw) for _ in range(2_000) for invent in (first_name, given_name, stranger)]
    names += [person.name for person in neighbours(0, "zh")]
    assert not [name for name in names if held(name) or held(name[:2]) or held(name[-2:])]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_wording_held_out_of_a_fact_is_never_used_for_it_in_training(school: Path, language: str) -> None:
    chats = [line for line in lines(school / "chat.jsonl") if line["language"] == language]
    asked = {plain(turn["content"]) for line in chats for turn in line["messages"] if turn["role"] == "user"}
    told = "\n".join(line["text"] for line in lines(school / "text.jsonl") if line["language"] == language)
    told = told.replace("请告诉我", "")  # another wording, that has "告诉我" in it
    relations = {relation for pairs in taught().values() for relation, _ in pairs}
    used = Counter()
    for relation, fact in {pair for pairs in taught().values() for pair in pairs}:
        *known, held_out = (fill(form, fact, language) for form in relation.forms(language))
        assert plain(held_out) not in asked, held_out
        assert held_out not in told, held_out
        used[relation] += any(plain(form) in asked for form in known)
    assert sum(used[relation] > 0 for relation in relations) > 30  # the others are not asked for at this size


def plain(question: str) -> str:
    """A question without what may be left out of it in training: capitals, apostrophes and the last mark."""
    short = re.sub(r"\b(what|who|how|where|i)['’ ]?[ia]?([sm])\b", r"\1\2", question.lower())
    return short.rstrip("?？.。!！")


def test_the_judge_accepts_every_reference_answer() -> None:
    wrong = [test["id"] for test, item in every_test(6) if not judge(test, reference_of(item))]
    assert not wrong


def test_the_judge_rejects_another_item_s_answer_silence_and_a_doubled_answer() -> None:
    fooled, tried = [], 0
    for name, skill in skills().items():
        if name == "later":  # its questions are those of the others, and two of them are of different kinds
            continue
        for language in LANGUAGES:
            items = eval_items(2, name, language, skill.splits[0], 8)
            for item, other in pairwise(items):
                test = json.loads(eval_line(item, name, language, "train", 0))
                answers = [test["answer"], other.messages[-1]["content"]]
                if test["check"] in ("story", "unknown") or answers[0] == answers[1]:
                    continue
                if test["accept"][0].lower() in answers[1].lower():
                    continue
                if answers[1].rstrip(".。") in test["messages"][-1]["content"]:  # words of the question are harmless
                    continue
                tried += 1
                both = [{"role": "assistant", "content": " ".join(answers)}]
                if judge(test, reference_of(other)) or judge(test, both) or judge(test, []):
                    fooled.append((test["id"], answers))
    assert tried > 400
    assert not fooled


@pytest.mark.parametrize(
    ("item", "answer", "right"),
    [
        (
            {"check": "value", "accept": ["Paris"], "reject": [], "answer": "It is Paris.", "q": "Capital of France?"},
            "It is Paris",
            True,
        ),
        (
            {"check": "value", "accept": ["Paris"], "reject": [], "answer": "It is Paris.", "q": "Capital of France?"},
            "It is not Paris.",
            False,
        ),
        (
            {"check": "value", "accept": ["Paris"], "reject": [], "answer": "It is Paris.", "q": "Capital of France?"},
            "Paris or Rome.",
            False,
        ),
        (
            {"check": "value", "accept": ["有光环"], "reject": ["没"], "answer": "有光环。", "q": "土星有没有光环？"},
            "没有光环。",
            False,
        ),
        ({"check": "value", "accept": ["12"], "reject": [], "answer": "It is 12.", "q": "?"}, "It is 12.5.", False),
        (
            {"check": "cite", "accept": ["Zormi"], "reject": [], "answer": "It is Zormi [2].", "q": "?"},
            "It is Zormi [1].",
            False,
        ),
        (
            {"check": "cite", "accept": ["Zormi"], "reject": [], "answer": "It is Zormi [2].", "q": "?"},
            "It is Zormi [2] [1].",
            False,
        ),
        (
            {"check": "cite", "accept": ["Zormi"], "reject": [], "answer": "It is Zormi [2].", "q": "?"},
            "Zormi [2]",
            True,
        ),
        (
            {"check": "unknown", "accept": [], "reject": [], "answer": "I don't know.", "q": "Capital of Xan?"},
            "I don't know. It is Rome.",
            False,
        ),
        (
            {"check": "unknown", "accept": [], "reject": [], "answer": "I don't know.", "q": "Capital of Xan?"},
            "I do not know.",
            True,
        ),
        (
            {"check": "story", "accept": ["fox"], "reject": [], "answer": "A fox ran. " * 8, "q": "?"},
            "A fox ran. " * 8,
            False,
        ),
        (
            {"check": "steps", "accept": ["55"], "reject": [], "answer": write_steps(48, 7, "+", "en"), "q": "?"},
            "The answer is 55.",
            False,
        ),
        (
            {"check": "steps", "accept": ["55"], "reject": [], "answer": write_steps(48, 7, "+", "en"), "q": "?"},
            write_steps(48, 7, "+", "en").replace(" is ", " is not "),
            False,
        ),
        (
            {"check": "unknown", "accept": [], "reject": [], "answer": "I don't know.", "q": "Capital of Xan?"},
            "I know. I don't know.",
            False,
        ),
        (
            {"check": "quoted", "accept": ["cat"], "reject": [], "answer": "It is “cat”.", "q": "“猫” in English?"},
            "It is not “cat”.",
            False,
        ),
        ({"check": "value", "accept": ["9"], "reject": [], "answer": "9.", "q": "Go on: 12, 11, 10"}, "-9.", False),
        *[
            (
                {"check": "value", "accept": [value], "reject": [], "answer": value, "q": question},
                answer,
                right,
            )
            for value, question, answer, right in (
                ("law", "Which one does not belong: fox, law, cat?", "It is not law.", False),
                ("law", "Which one does not belong: fox, law, cat?", "Law does not belong.", True),
                ("法律", "哪个不是一类：猫、法律？", "不是法律。", False),
                ("法律", "哪个不是一类：猫、法律？", "法律不是一类。", True),
            )
        ],
    ],
)
def test_the_judge_is_strict(item: dict[str, Any], answer: str, right: bool) -> None:
    test = {**item, "messages": [{"role": "user", "content": item["q"]}]}
    assert judge(test, [{"role": "assistant", "content": answer}]) is right


@pytest.mark.parametrize(
    ("key", "subject", "language", "right", "wrong"),
    [
        ("unit", "kilometre", "en", ["1000.", "1,000 metres"], ["1000 kilometres", "1000 km", "-1000 metres", "1000%"]),
        ("unit", "kilometre", "zh", ["1000。", "1,000米"], ["1000千米", "1000厘米", "不是1000米。", "−1000米"]),
        ("month.days", "May", "en", ["31.", "It has 31."], ["30.", "-31", "31 hours", "31 May"]),
        ("month.days", "February", "zh", ["28或29。", "28天或29天"], ["28。", "28天"]),
        ("planet.rings", "Jupiter", "en", ["Yes.", "It has rings."], ["No.", "Yes, no.", "It has no rings."]),
        ("planet.rings", "Mars", "en", ["No."], ["Yes.", "No, yes.", "No, there are rings."]),
        ("planet.rings", "Jupiter", "zh", ["有。"], ["没有。", "没有光环。"]),
        ("planet.rings", "Mars", "zh", ["没有。"], ["有。", "没有，有。"]),
        ("landmark.country", "Buckingham Palace", "en", ["United Kingdom."], ["United States."]),
        ("country.capital", "the United States", "en", ["Washington.", "Washington DC."], ["Not Washington."]),
        ("country.capital", "Bhutan", "zh", ["不丹的首都是廷布。"], ["不是廷布。", "不丹的首都不是廷布。"]),
        ("animal.legs", "spider", "en", ["8 legs.", "8"], ["-8", "It has −8.", "8%"]),
    ],
)
def test_the_judge_takes_what_says_the_same_and_nothing_else(
    key: str, subject: str, language: str, right: list[str], wrong: list[str]
) -> None:
    pairs = [pair for own in taught().values() for pair in own if pair[0].key == key and not pair[0].back]
    relation, fact = next(pair for pair in pairs if pair[1].subject_en == subject)
    item = answered(fill(relation.forms(language)[0], fact, language), relation, fact, language)
    test = json.loads(eval_line(item, "s", language, "train", 0))
    said = {answer: judge(test, [{"role": "assistant", "content": answer}]) for answer in right + wrong}
    assert said == dict.fromkeys(right, True) | dict.fromkeys(wrong, False)


def test_a_calculator_answer_counts_only_with_the_call_its_result_and_its_use() -> None:
    item = eval_items(1, "calculate_subtract", "en", "train", 1)[0]
    test, (call, result, answer) = json.loads(eval_line(item, "s", "en", "train", 0)), reference_of(item)
    assert judge(test, [call, result, answer])
    assert not judge(test, [answer])
    assert not judge(test, [call, {**result, "content": "1"}, answer])
    assert not judge(test, [call, result, {**answer, "content": answer["content"].replace(" = ", " = 1")}])
    assert not judge(test, [call, result, {**answer, "content": answer["content"].replace(" = ", " is not ")}])
    large = next(one for one in drawn("calculate_multiply", "en", 99) if len(one.accept[0]) > 3)
    test, (call, result, answer) = json.loads(eval_line(large, "s", "en", "train", 0)), reference_of(large)
    assert judge(test, [call, result, {**answer, "content": f"It is {int(large.accept[0]):,}."}])


def test_every_call_computes_what_its_tool_message_says() -> None:
    tools = pytest.importorskip("liuli.engine.tools")
    calls = 0
    for _, item in every_test(10):
        for turn, reply in pairwise(item.messages):
            for call in turn.get("tool_calls", ()):
                expression = json.loads(call["function"]["arguments"])["expression"]
                assert tools.run_call("calculator", call["function"]["arguments"], tools.TOOLS) == reply["content"]
                assert number_text(evaluate(expression)) == reply["content"]
                calls += 1
    assert calls > 300


def test_written_steps_are_right_for_every_pair_of_small_numbers() -> None:
    for a in range(0, 200, 3):
        for b in range(0, 200, 7):
            for operation, result in (("+", a + b), ("-", a - b)):
                if result < 0:
                    continue
                text = write_steps(a, b, operation, "en")
                assert text.endswith(f"The answer is {result}."), text
                for left, right in re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", text):
                    assert number_text(evaluate(left)) == right, text


def test_every_fact_is_taught_equally_often() -> None:
    draw = Draw(Random(0), "en", "train", 0, 0)
    things = list(range(37))
    counts = Counter()
    for draw.index in range(37 * 4):
        counts[draw.cycle(things)] += 1
    assert set(counts.values()) == {4}


def test_items_are_short_enough_for_a_small_context() -> None:
    longest = max(item_tokens(item) for _, item in every_test(12))
    assert longest <= 250
    draw = Draw(Random(0), "en", "train", 0, 0)
    texts = [skill.text for skill in skills().values() if skill.text]
    for draw.index in range(20):
        for draw.language in LANGUAGES:
            assert all(estimated_tokens(text(draw)) <= 400 for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_number_of_story_sentences_is_exact(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to tell a step is expanded by brute force, three words a slot; no two give one sentence."""
    from liuli.curriculum.skills import stories

    rules = grammar(language)
    small = stories.Grammar({slot: words[:3] for slot, words in rules.slots.items()}, rules.plots)
    people = {"f": ("Anna", "Mary"), "m": ("Tom", "Max")} if language == "en" else {"": ("豆豆", "毛毛", "米米")}
    pals = ("Emma", "Paul") if language == "en" else ("点点", "花花")
    names = {"name": tuple(name for group in people.values() for name in group), "pal": pals}
    monkeypatch.setattr(stories, "grammar", lambda _: small)
    monkeypatch.setattr(stories, "story_names", lambda _, slot: names[slot])
    ways = {way for plot in rules.plots for step in plot for way in step}
    expanded = [sentence for way in ways for sentence in set(expand(way, small.slots, people, pals))]
    assert len(set(expanded)) == len(expanded) == sum(count_expansions(way, language) for way in ways)


def expand(
    way: str, slots: dict[str, tuple[str, ...]], people: dict[str, tuple[str, ...]], pals: tuple[str, ...]
) -> Iterator[str]:
    from itertools import product

    from liuli.curriculum.skills.stories import PRONOUNS

    used = sorted({slot.lower() for slot in re.findall(r"\{(\w+)\}", way)} - {"name", "pal", "he", "his", "him"})
    for words in product(*(slots[slot] for slot in used)):
        filled = dict(zip(used, words, strict=True))
        if filled.get("hero", 1) == filled.get("friend", 2):
            continue
        for gender, group in people.items():
            for name, pal in product(group, pals):
                values = {**filled, "name": name, "pal": pal, **PRONOUNS[gender or "f"]}
                yield re.sub(
                    r"\{(\w+)\}",
                    lambda m, v=values: v[m[1].lower()] if m[1].islower() else v[m[1].lower()].capitalize(),
                    way,
                )


def test_stories_hold_over_a_hundred_thousand_sentences() -> None:
    assert distinct_sentences("en") > 100_000
    assert distinct_sentences("zh") > 100_000
    assert max(map(distinct_sentences, LANGUAGES)) < 5 * min(map(distinct_sentences, LANGUAGES))
    for language in LANGUAGES:
        heroes, pals = story_names(language, "name"), story_names(language, "pal")
        assert not set(heroes) & set(pals) and not any(map(held, heroes + pals))


@pytest.mark.parametrize("language", LANGUAGES)
def test_dialogues_have_as_many_turns_between_as_is_counted(language: str) -> None:
    draw = Draw(Random(0), language, "train", 0, 0)
    seen = {plain(filler(draw, 1)[0]["content"]) for _ in range(40_000)}
    seen -= {found[1] for question in seen if (found := re.match("(?:whats|tell me) the (.+)", question))}  # mere nouns
    assert 0.9 < len(seen) / distinct_fillers(language) <= 1
    assert distinct_dialogues(language) > 1_000_000_000


def test_too_small_a_size_is_an_error_a_person_can_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot hold every skill"):
        make(tmp_path / "tiny", size=10)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_name_stands_twice_on_a_page_nor_is_a_stranger_on_it(language: str) -> None:
    draw = Draw(Random(0), language, "names", 0, 0)
    for _ in range(600):
        _, _, entities, values = passages(draw, NAMED)
        names = sorted([*entities, *values], key=len)
        assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b]
    sentences = [re.escape(schema.sentence) for kind in (NAMED, NUMBERED) for schema in kind[language]]
    start = "|".join(s.replace(r"\{e\}", "(.+)").replace(r"\{v\}", NOT_THERE[language]) for s in sentences)
    for item in drawn("cite_none", language, 600):
        found = re.fullmatch(start, item.messages[-1]["content"])
        assert found and found[found.lastindex or 0] not in item.messages[0]["content"].rpartition("\n")[0]


@pytest.mark.parametrize(("gender", "others"), [("f", "he|his|him"), ("m", "she|her")])
def test_a_story_of_a_real_name_has_its_pronouns(gender: str, others: str) -> None:
    draw = Draw(Random(0), "en", "train", 0, 0)
    names = given_names("en", gender) + given_names("en", gender, held_out=True)
    assert not [name for name in names if re.search(rf"\b({others})\b", write(draw, "fox", name), re.IGNORECASE)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_word_is_denied_a_kind_it_belongs_to(language: str) -> None:
    kinds = {word.name[language]: word.category for word in knowledge().lexicon}
    within = {("fruit", "food"), ("vegetable", "food"), ("job", "person"), ("family", "person")}
    within |= {(b, a) for a, b in within}
    for item in drawn("yes_or_no", language, 3_000):
        before, word, after = re.split("[“”]", item.messages[0]["content"])
        kind = max(
            (kind for kind in kinds.values() if kind[language] in before + after), key=lambda k: len(k[language])
        )
        assert item.messages[1]["content"] in ("Yes.", "是的。") or (kinds[word].en, kind.en) not in within, word
    for item in drawn("odd_one_out", language, 1_500):
        assert (kinds[item.reject[0]].en, kinds[item.accept[0]].en) not in within, item.messages[0]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("skill", ["story", "story_named"])
def test_a_spoiled_story_is_never_right(skill: str, language: str) -> None:
    draw = Draw(Random(0), language, "train", 0, 0)
    for item in drawn(skill, language, 300):
        test = json.loads(eval_line(item, skill, language, "train", 0))
        assert worth(test, spoil(item, "story", skill, draw)) == WRONG


def test_a_chinese_measure_word_follows_only_a_number() -> None:
    asked = [item.messages[0]["content"] for skill in ("units", "convert_units") for item in drawn(skill, "zh", 500)]
    assert not [question for question in asked if "成个" in question]
    assert any("成月" in question for question in asked) and any("多少个月" in question for question in asked)


def test_requests_have_the_right_article() -> None:
    asked = [item.messages[0]["content"].lower() for item in drawn("unknown_request", "en", 6_000)]
    words = {word.name.en for word in knowledge().lexicon}
    found = {match[1] for question in asked for match in re.finditer(r"\ba (\w+)", question)} & words
    assert len(found) > 20 and not [word for word in found if article(word) != f"a {word}"]
    assert article("pork") == "pork" and article("eagle") == "an eagle"


def test_a_held_out_wording_of_small_talk_is_more_than_another_mark() -> None:
    for forms, _ in (pair for kind in TALK.values() for pairs in kind.values() for pair in pairs):
        *known, held_out = (re.sub(r"\W", "", form).lower() for form in forms)
        assert held_out not in known, forms


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_leap_year_is_asked_about_as_often_as_another(language: str) -> None:
    asked = [list(drawn("leap_year", language, 1_000))]
    asked += [eval_items(0, "leap_year", language, split, 40) for split in skills()["leap_year"].splits]
    for items in asked:
        answers = Counter(item.messages[1]["content"] for item in items)
        assert max(answers.values()) < 0.7 * len(items)


def test_every_relation_that_has_a_wording_is_taught() -> None:
    assert {relation.key for relation in RELATIONS} | {"unit"} == {key for keys in SKILLS.values() for key in keys}
