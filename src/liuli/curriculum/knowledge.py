"""What is true: the hand-written bilingual knowledge base, as typed records.

In come the tab-separated tables in `data/`; out come frozen dataclasses (`knowledge().countries`, `.elements`, ...) and
the same as a flat list of `facts()`. It does not know how a question is asked, nor what a training text looks like.

A table's columns are the fields of its class. A `Both` field is written either in two columns (`name_en`, `name_zh`) or
in one that holds the English word, whose Chinese is then found in `terms.tsv` or in a table read before (a country's
name, say): so each term is translated once. A cell `-` means: left out on purpose, for it is disputed or has no answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from liuli.errors import DamagedError

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Both:
    """One thing said in both languages; `both["zh"]` picks one."""

    en: str
    zh: str

    def __getitem__(self, language: str) -> str:
        return {"en": self.en, "zh": self.zh}[language]


@dataclass(frozen=True)
class Country:
    iso: str  # ISO 3166-1 alpha-2
    name: Both
    capital: Both | None
    continent: Both | None
    region: Both | None
    currency: Both | None
    language: Both | None  # the official one most people use; None where there is no clear answer
    coast: Both | None  # landlocked, island or coastal


@dataclass(frozen=True)
class Colour:
    name: Both
    example: Both  # a thing that has it


@dataclass(frozen=True)
class Element:
    number: int
    symbol: str
    name: Both
    category: Both | None
    period: int
    group: int | None  # 1..18; None for lanthanides and actinides
    state: Both | None  # at 25 °C; None where only predicted


@dataclass(frozen=True)
class Planet:
    order: int  # 1 is nearest to the sun
    name: Both
    kind: Both
    size_rank: int  # 1 is the largest
    year: Both  # one trip around the sun
    moons: int | None  # only where the count no longer grows
    rings: Both
    colour: Both
    feature: Both


@dataclass(frozen=True)
class Animal:
    name: Both
    animal_class: Both
    diet: Both
    habitat: Both
    legs: int | None  # None where arms and legs are hard to tell apart
    feature: Both
    young: Both | None
    sound: Both | None


@dataclass(frozen=True)
class Unit:
    """1 `name` = `factor` `base` exactly. `plural` and `base` are English plural forms beside the Chinese unit."""

    name: Both
    plural: str
    factor: str  # a decimal number, exact
    base: Both
    quantity: Both


@dataclass(frozen=True)
class Weekday:
    number: int  # Monday is 1
    name: Both


@dataclass(frozen=True)
class Month:
    number: int
    name: Both
    days: Both  # February has 28 or 29
    season: Both  # north of the equator


@dataclass(frozen=True)
class Holiday:
    name: Both
    date: Both


@dataclass(frozen=True)
class Word:
    """A pair of everyday words, the only translation of each other in this table."""

    name: Both
    part: Both
    category: Both


@dataclass(frozen=True)
class Person:
    name: Both
    field: Both
    country: Both
    known_for: Both
    born: int | None  # year; negative is BC


WRITTEN = (
    *("novel", "novella", "play", "poem", "poems", "epic", "comic", "fairy tale", "short story", "story collection"),
    *("children's book", "history book", "science book", "political book", "philosophy book", "mathematics book"),
    "economics book",
)
INVENTED = ("invention", "programming language", "operating system")
CREATORS = dict.fromkeys(WRITTEN, "author") | dict.fromkeys(INVENTED, "inventor")
CREATORS |= {"discovery": "discoverer", "theory": "proposer"}
"""Kinds of works whose creator is asked for by a name of his own."""


@dataclass(frozen=True)
class Work:
    name: Both
    kind: Both
    creator: Both


@dataclass(frozen=True)
class Landmark:
    name: Both
    kind: Both
    country: Both | None  # None where several share it
    continent: Both


@dataclass(frozen=True)
class Food:
    name: Both
    kind: Both
    colour: Both
    grows: Both


@dataclass(frozen=True)
class Job:
    name: Both
    does: Both
    place: Both


@dataclass(frozen=True)
class Opposite:
    name: Both
    opposite: Both


@dataclass(frozen=True)
class Shape:
    name: Both
    sides: int
    corners: int


@dataclass(frozen=True)
class Name:
    """Material for invented people. origin: en or zh; kind: given or surname; gender: f, m, or - for surnames."""

    origin: str
    kind: str
    gender: str
    name: Both  # the other language's form is the transliteration or the pinyin


@dataclass(frozen=True)
class Syllable:
    """Material for invented things. use: stem, or the ending of a city, country, animal, element, river or company.

    A name is two stems and an ending, in both languages: Zor + mi + land is 佐米兰.
    """

    use: str
    name: Both


@dataclass(frozen=True)
class Other:
    """A real name that no other table holds, so that nothing invented takes it."""

    kind: str
    name: Both


@dataclass(frozen=True)
class Knowledge:
    """Every table of `data/`, read in this order; a field's name is its file's name."""

    colours: tuple[Colour, ...]
    countries: tuple[Country, ...]
    elements: tuple[Element, ...]
    planets: tuple[Planet, ...]
    animals: tuple[Animal, ...]
    units: tuple[Unit, ...]
    weekdays: tuple[Weekday, ...]
    months: tuple[Month, ...]
    holidays: tuple[Holiday, ...]
    lexicon: tuple[Word, ...]
    people: tuple[Person, ...]
    works: tuple[Work, ...]
    landmarks: tuple[Landmark, ...]
    foods: tuple[Food, ...]
    jobs: tuple[Job, ...]
    opposites: tuple[Opposite, ...]
    shapes: tuple[Shape, ...]
    names: tuple[Name, ...]
    syllables: tuple[Syllable, ...]
    others: tuple[Other, ...]


MATERIAL = ("names", "syllables", "others")  # tables that state no fact


@dataclass(frozen=True)
class Fact:
    """One thing to know: the answer to "what is the `attribute` of `subject`?", asked in either language."""

    kind: str  # the record's class in lower case: country, element, ...
    subject_en: str
    subject_zh: str
    attribute: str  # the field's name; "translation" of a word; "in metres" of a unit
    value_en: str
    value_zh: str


@functools.cache
def knowledge() -> Knowledge:
    """The whole knowledge base, read once."""
    terms = {(row["kind"], row["en"]): Both(row["en"], row["zh"]) for _, row in read_table(DATA / "terms.tsv")}
    tables: dict[str, tuple[Any, ...]] = {}
    for table, hint in get_type_hints(Knowledge).items():
        record_class = get_args(hint)[0]
        columns = get_type_hints(record_class)
        tables[table] = tuple(
            record_class(**{name: _value(name, column, row, terms, where) for name, column in columns.items()})
            for where, row in read_table(DATA / f"{table}.tsv")
        )
        kind = record_class.__name__.lower()
        terms |= {(kind, record.name.en): record.name for record in tables[table]}
    return Knowledge(**tables)


def facts() -> list[Fact]:
    """Every (subject, attribute) pair of the knowledge base with its value, in the order of the tables."""
    base = knowledge()
    records = (record for table in fields(base) if table.name not in MATERIAL for record in getattr(base, table.name))
    return [fact for record in records for fact in _facts_of(record)]


def is_real(name: str) -> bool:
    """Whether the knowledge base uses this name or word, in either language; invented things must not."""
    return _bare(name) in _real_names()


def _bare(name: str) -> str:
    """The Nile, the nile and nile are one name, and so are 《活着》 and 活着."""
    return name.strip().strip("《》").casefold().removeprefix("the ")


@functools.cache
def _real_names() -> frozenset[str]:
    base = knowledge()
    tables = [getattr(base, table.name) for table in fields(base) if table.name not in ("names", "syllables")]
    values = [getattr(record, column.name) for table in tables for record in table for column in fields(record)]
    return frozenset(_bare(text) for value in values if isinstance(value, Both) for text in (value.en, value.zh))


def _facts_of(record: Any) -> Iterator[Fact]:
    kind, name = type(record).__name__.lower(), record.name
    if isinstance(record, Word):  # asked in English, the answer is Chinese, and the other way round
        yield Fact(kind, name.en, name.zh, "translation", name.zh, name.en)
        yield Fact(kind, name.en, name.zh, "category", record.category.en, record.category.zh)
    elif isinstance(record, Unit):
        amount_en, amount_zh = f"{record.factor} {record.base.en}", f"{record.factor}{record.base.zh}"
        yield Fact(kind, name.en, name.zh, f"in {record.base.en}", amount_en, amount_zh)
    elif isinstance(record, Opposite):
        other = record.opposite
        yield Fact(kind, name.en, name.zh, "opposite", other.en, other.zh)
        yield Fact(kind, other.en, other.zh, "opposite", name.en, name.zh)
    else:
        for column in fields(record):
            value = getattr(record, column.name)
            if column.name != "name" and value is not None:
                both = value if isinstance(value, Both) else _plain(value)
                attribute = column.name
                if isinstance(record, Work) and attribute == "creator":
                    attribute = CREATORS.get(record.kind.en, attribute)
                yield Fact(kind, name.en, name.zh, attribute, both.en, both.zh)


def _plain(value: int | str) -> Both:
    """A number or symbol, the same in both languages; only the years before Christ are negative."""
    if isinstance(value, int) and value < 0:
        return Both(f"{-value} BC", f"公元前{-value}")
    return Both(str(value), str(value))


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """("file:line", column name -> cell) for each row; the first line names the columns, `#` starts a comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    columns = lines[0].split("\t")
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("#") or not line.strip():
            continue
        cells = line.split("\t")
        where = f"{path.name}:{number}"
        if len(cells) != len(columns) or not all(cell and cell == cell.strip() for cell in cells):
            raise DamagedError(f"a row needs {len(columns)} filled cells", where, f"columns: {', '.join(columns)}")
        yield where, dict(zip(columns, cells, strict=True))


def _value(name: str, hint: Any, row: dict[str, str], terms: dict[tuple[str, str], Both], where: str) -> Any:
    choices = get_args(hint) or (hint,)  # (Both, NoneType) for an optional one
    if Both in choices and f"{name}_en" in row:
        pair = Both(row[f"{name}_en"], row[f"{name}_zh"])
        cell = "-" if pair == Both("-", "-") else pair.en
    else:
        pair, cell = None, row[name]
    if cell == "-" and type(None) in choices:
        return None
    if Both not in choices:
        return int(cell) if int in choices else cell
    if pair is None and (name, cell) not in terms:
        raise DamagedError(f"no Chinese for the {name} {cell!r}", where, "add it to terms.tsv")
    return pair or terms[name, cell]
