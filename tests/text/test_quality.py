"""Promises of cleaning and of removing duplicates: what goes, what stays, and that the report says why."""

from __future__ import annotations

import random

import pytest

from liuli.errors import UsageError
from liuli.text import Document, Rules
from liuli.text.clean import CleanReport, clean_documents, measure, reason_to_remove
from liuli.text.dedup import DedupReport, deduplicate

WORDS = ("river", "stone", "cloud", "paper", "window", "garden", "morning", "silver", "engine", "letter", "summer")


def prose(seed: int, words: int = 200) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(words))


REMOVED = {
    "shorter": "Too short.",
    "longer": "word " * 400,
    "mostly symbols": "@#$% ^&*~ |<>| " * 5 + "words here",
    "the same lines": "This line comes again.\n" * 3 + prose(0, 9),
    "one phrase": "buy it now here " * 6 + prose(1, 40),
    "the same passages": f"{prose(2, 40)}. {prose(2, 40)}! {prose(3, 15)}",
}


@pytest.mark.parametrize("reason", REMOVED)
def test_each_rule_removes_what_it_names_and_says_so(reason: str) -> None:
    report = CleanReport()
    documents = [Document(prose(9), "good"), Document(REMOVED[reason], "bad")]
    assert [d.id for d in clean_documents(documents, Rules(longest=1_900), report)] == ["good"]
    assert report.kept == 1 and next(iter(report.removed)).startswith(reason)
    removed = report.removed[next(iter(report.removed))]
    assert (removed.documents, removed.bytes) == (1, len(REMOVED[reason].encode()))
    assert removed.examples == [("bad", " ".join(REMOVED[reason].split())[:80])]


@pytest.mark.parametrize(
    "text",
    [
        prose(5),
        "琉璃是一种玻璃。它很透明，可以看见里面的一切。古时候的人用它做成珠子、瓶子和窗户，今天它仍然很受欢迎。",
        "def add(a: int, b: int) -> int:\n    '''Add.'''\n    return a + b\n\n\nprint(add(2, 3) == 5)\n",
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
        # of four characters a term is made, not a phrase
        "人工智能已经走进日常生活。医院用人工智能看片子，学校用人工智能改作业，工厂用人工智能找次品。"
        "也有人担心人工智能会抢走工作，可是每一项新技术都曾让人担心过。怎样用好人工智能，是我们这一代人要回答的问题。",
        "हिन्दी भारत की एक प्रमुख भाषा है और इसे करोड़ों लोग बोलते हैं।",
        "Alice said: “Good morning!” Bob answered: “Good morning!” Then they both went to the river (it was warm).",
    ],
)
def test_good_prose_code_and_chinese_stay(text: str) -> None:
    assert reason_to_remove(text, Rules()) is None


def test_shares_are_what_they_say() -> None:
    assert measure("ab\nab\ncd\nef")["repeated_lines"] == 0.25
    assert measure("ab $$")["symbols"] == 2 / 5
    assert measure("一 二 三 四 五 六 七 八 " * 10)["repeated_phrase"] == 1.0
    assert measure("buy it now here " * 10)["repeated_phrase"] == 1.0
    words = [f"w{n}" for n in range(30)]
    assert measure(" ".join(words + words[:10]))["repeated_passages"] == 10 / 40
    assert set(measure("").values()) == {0.0}


@pytest.mark.parametrize("share", [float("nan"), -3, 7])
def test_a_share_that_does_not_exist_is_refused_by_its_option(share: float) -> None:
    for name in ("symbols", "repeated_lines", "repeated_phrase", "repeated_passages"):
        with pytest.raises(UsageError, match=f"(?s)does not exist.*--{name.removeprefix('repeated_')}"):
            Rules(**{name: share})  # type: ignore[arg-type]


def test_of_equal_documents_the_first_stays() -> None:
    report = DedupReport()
    texts = ["One text,  with spaces.", "Another text.", "One text, with\nspaces.", "Another text."]
    documents = [Document(text, str(n)) for n, text in enumerate(texts)]
    assert [d.id for d in deduplicate(documents, threshold=None, report=report)] == ["0", "1"]
    assert (report.kept, report.equal, report.near) == (2, 2, 0)
    assert report.examples == [("2", "0", 1.0), ("3", "1", 1.0)]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_near_duplicates_go_and_different_documents_stay(language: str) -> None:
    def text(seed: int) -> str:
        rng = random.Random(seed)
        return prose(seed) if language == "en" else "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(200))

    originals = [Document(text(n), f"original {n}") for n in range(30)]
    copies = [Document(d.text[:-10] + " changed", f"copy of {d.id}") for d in originals[:10]]
    halves = [Document(d.text[: len(d.text) // 2] + text(90 + n), f"half {n}") for n, d in enumerate(originals[:10])]
    report = DedupReport()
    kept = [d.id for d in deduplicate(originals + copies + halves, report=report)]
    assert kept == [d.id for d in originals + halves]
    assert (report.near, report.equal) == (10, 0)
    assert all(removed == f"copy of {like}" and similarity >= 0.8 for removed, like, similarity in report.examples)
    assert len(list(deduplicate(originals + copies, threshold=None))) == 40


def test_somewhat_similar_documents_stay() -> None:
    report = DedupReport()
    texts = [text for n in range(60) for text in (prose(n), " ".join([*prose(n).split()[:172], prose(100 + n, 28)]))]
    kept = list(deduplicate([Document(text) for text in texts], threshold=0.8, report=report))
    assert len(kept) > 110 and report.examples  # their true similarity is 0.75, give or take an estimate's error
    assert all(similarity >= 0.8 for _, _, similarity in report.examples)


def test_a_threshold_of_one_removes_only_what_has_the_same_words() -> None:
    texts = [prose(1), prose(1).upper(), prose(1)[:-9] + " changed", prose(2)]
    assert [d.text for d in deduplicate(map(Document, texts), threshold=1.0)] == [texts[0], *texts[2:]]


def test_what_signs_alone_tell_apart_stays_and_a_comma_does_not_count() -> None:
    texts = [
        "What is 12 + 7?",
        "What is 12 - 7?",
        "x = a + b",
        "x = a[b]",
        "∃x ∈ ℝ: x² ≤ 0",
        "∀x ∈ ℝ: x² ≥ 0",
        "😀😀",
        "→ ←",
        "？！",
        "…",
    ]
    assert [d.text for d in deduplicate(map(Document, [*texts, "What, is 12 + 7"]))] == texts


def test_one_line_repeated_leaves_one_document() -> None:
    documents = (Document("The same line.", str(n)) for n in range(1000))
    assert len(list(deduplicate(documents))) == 1
