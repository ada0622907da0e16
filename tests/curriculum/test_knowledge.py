"""The knowledge base is what it says: complete, unambiguous, and the same thing in both languages."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from fractions import Fraction
from typing import Any

import pytest

from liuli.curriculum import knowledge as base
from liuli.curriculum.knowledge import Both, facts, is_real, knowledge
from liuli.errors import DamagedError

HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")


def repeated(values: Iterable[object]) -> list[object]:
    return [value for value, count in Counter(values).items() if count > 1]


def every_pair() -> Iterator[tuple[str, Both]]:
    for table in fields(knowledge()):
        for record in getattr(knowledge(), table.name):
            for column in fields(record):
                value = getattr(record, column.name)
                if isinstance(value, Both):
                    yield f"{table.name}.{column.name}", value


def test_promised_counts_are_there() -> None:
    promised = {
        "countries": 150,
        "elements": 118,
        "planets": 8,
        "animals": 100,
        "units": 40,
        "lexicon": 500,
        "people": 80,
    }
    promised |= {"people": 80, "works": 60, "landmarks": 80, "foods": 60, "jobs": 40, "opposites": 100}
    assert {table: n for table, n in promised.items() if len(getattr(knowledge(), table)) < n} == {}
    assert len(facts()) >= 3500


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_subject_and_attribute_has_one_value(language: str) -> None:
    questions = [(fact.kind, getattr(fact, f"subject_{language}"), fact.attribute) for fact in facts()]
    assert repeated(questions) == []


def test_no_value_is_empty_or_a_placeholder() -> None:
    texts = [text for _, pair in every_pair() for text in (pair.en, pair.zh)]
    assert [text for text in texts if not text or text != text.strip() or text == "-"] == []


def test_chinese_is_chinese_and_english_is_not() -> None:
    assert [(where, pair) for where, pair in every_pair() if not HAN.search(pair.zh) or HAN.search(pair.en)] == []
    assert [(where, pair) for where, pair in every_pair() if re.search(r"[,.;?!()]", pair.zh)] == []


def test_values_are_short_enough_to_memorise() -> None:
    assert [fact for fact in facts() if len(fact.value_en) > 43 or len(fact.value_zh) > 14] == []


def test_elements_are_numbered_1_to_118_and_fill_the_periodic_table() -> None:
    elements = knowledge().elements
    lengths = Counter(element.period for element in elements)
    assert [element.number for element in elements] == list(range(1, 119))
    assert [lengths[period] for period in range(1, 8)] == [2, 8, 8, 18, 18, 32, 32]
    assert repeated(element.symbol for element in elements) == []
    for earlier, later in itertools.pairwise(e for e in elements if e.group is not None):
        assert (earlier.period, earlier.group) < (later.period, later.group)
    groups = {1: "alkali metal", 2: "alkaline earth metal", 17: "halogen", 18: "noble gas"}
    assert all(e.category.en == groups[e.group] for e in elements if e.category and e.group in groups and e.number > 2)


def test_countries_use_closed_sets_and_reverse_questions_have_one_answer() -> None:
    countries = knowledge().countries
    continents = {"Asia", "Europe", "Africa", "North America", "South America", "Oceania"}
    assert {country.continent.en for country in countries if country.continent} == continents
    assert all(re.fullmatch("[A-Z]{2}", country.iso) for country in countries)
    assert repeated(country.iso for country in countries) == []
    for language in ("en", "zh"):
        assert repeated(country.capital[language] for country in countries if country.capital) == []
    shared = {"euro", "US dollar", "Swiss franc", "Australian dollar", "East Caribbean dollar"}
    shared |= {"West African CFA franc", "Central African CFA franc"}
    assert set(repeated(country.currency.en for country in countries if country.currency)) == shared


@pytest.mark.parametrize("table", ["countries", "people", "lexicon", "opposites"])
def test_a_word_or_name_has_one_translation_within_its_table(table: str) -> None:
    pairs = {pair for where, pair in every_pair() if where.startswith(f"{table}.") and not where.endswith(".part")}
    split_en = {pair.en for pair in pairs} & set(repeated(pair.en for pair in pairs))
    assert split_en <= {"Vatican City", "Georgia"}  # state and city differ in Chinese
    names = [record.name for record in getattr(knowledge(), table)]
    assert repeated(name.zh for name in names) == repeated(name.en for name in names) == []


def test_every_term_is_translated_once_and_used() -> None:
    terms = [(row["kind"], row["en"]) for _, row in base.read_table(base.DATA / "terms.tsv")]
    used = {(where.split(".")[1], pair.en) for where, pair in every_pair()}
    assert repeated(terms) == []
    assert [term for term in terms if term not in used] == []


def test_creators_are_named_as_in_the_people_table() -> None:
    people = {person.name.en: person.name.zh for person in knowledge().people}
    creators = [work.creator for work in knowledge().works if work.creator.en in people]
    assert [creator for creator in creators if people[creator.en] != creator.zh] == []


def test_a_words_opposite_is_its_own_and_never_itself() -> None:
    for language in ("en", "zh"):
        words = [pair[language] for row in knowledge().opposites for pair in (row.name, row.opposite)]
        assert repeated(words) == []


def test_unit_chains_agree_with_each_other() -> None:
    factors = {(unit.plural, unit.base.en): Fraction(unit.factor) for unit in knowledge().units}
    chained = [
        (direct, factors[a, b], factors[b, c])
        for (a, c), direct in factors.items()
        for b in {plural for plural, _ in factors}
        if (a, b) in factors and (b, c) in factors
    ]
    assert len(chained) >= 6
    assert all(direct == first * second for direct, first, second in chained)


def test_planets_sizes_and_calendar_are_complete_orders() -> None:
    assert [planet.order for planet in knowledge().planets] == list(range(1, 9))
    assert sorted(planet.size_rank for planet in knowledge().planets) == list(range(1, 9))
    assert sum(int(month.days.en[:2]) for month in knowledge().months) == 365


def test_invented_names_are_many_distinct_and_not_real() -> None:
    syllables = knowledge().syllables
    stems = [syllable.name for syllable in syllables if syllable.use == "stem"]
    endings = [syllable.name for syllable in syllables if syllable.use == "country"]
    made = [(a, b, end) for a in stems for b in stems for end in endings]
    english = ["".join(part.en for part in parts).capitalize() for parts in made]
    chinese = ["".join(part.zh for part in parts) for parts in made]
    assert len(set(english)) > 0.98 * len(made) > 10_000 and len(set(chinese)) > 0.98 * len(made)
    assert sum(map(is_real, english)) < 10


def test_name_material_is_enough_and_distinct() -> None:
    names = knowledge().names
    count = Counter((name.origin, name.kind) for name in names)
    wanted = {("en", "given"): 200, ("zh", "given"): 120, ("en", "surname"): 60, ("zh", "surname"): 60}
    assert count == wanted
    for language in ("en", "zh"):
        assert repeated((name.origin, name.kind, name.name[language]) for name in names) == []


@pytest.mark.parametrize(
    "name", ["Tokyo", "tokyo", "Nile", "the Nile", "红楼梦", "《红楼梦》", "氦", "Emma Stone", "冥王星", "Hong Kong"]
)
def test_real_names_are_recognised(name: str) -> None:
    assert is_real(name)


def test_a_torn_row_and_an_untranslated_term_are_named(tmp_path: Any) -> None:
    torn = tmp_path / "shapes.tsv"
    torn.write_text("name_en\tname_zh\tsides\n# comment\ntriangle\t三角形\n", encoding="utf-8")
    with pytest.raises(DamagedError, match=r"shapes\.tsv:3"):
        list(base.read_table(torn))
    with pytest.raises(DamagedError, match="'night'"):
        base._value("opposite", Both, {"opposite": "night"}, {}, "here:1")
