"""How each kind of fact is asked, answered and told, in both languages.

A `Relation` belongs to one (kind, attribute) of the knowledge base. Its wordings are its own idiomatic questions and the
common frames around its noun phrase ("the capital of France" -> "Tell me the capital of France."). One frame a relation
is held out: the relation is never asked with it in training, though other relations are.
`{s}` is the subject, `{a}` the subject with its English article, `{v}` the value, `{n}` the noun phrase.
"""
# ruff: noqa: E501

from __future__ import annotations

import functools
from dataclasses import dataclass

from liuli.curriculum.knowledge import Fact, facts

FRAMES = {
    "en": (
        "What is {n}?",
        "Tell me {n}.",
        "Do you know {n}?",
        "Please tell me {n}.",
        "I want to know {n}.",
        "Can you tell me {n}?",
    ),
    "zh": ("{n}是什么？", "请告诉我{n}。", "你知道{n}吗？", "{n}？", "我想知道{n}。", "能说说{n}吗？"),
}


@dataclass(frozen=True)
class Wording:
    """One language of a relation: noun phrase, own questions, the form of the answer, sentences that tell the fact."""

    noun: str
    asks: tuple[str, ...]
    answer: str
    tells: tuple[str, ...]


@dataclass(frozen=True)
class Relation:
    """One attribute of one kind of thing. back: the same fact asked the other way round, {v} and {s} exchanged."""

    key: str  # kind.attribute
    en: Wording
    zh: Wording
    back: bool = False  # this relation is itself such a reverse

    def wording(self, language: str) -> Wording:
        """The wording in a language."""
        return self.en if language == "en" else self.zh

    @functools.cache  # noqa: B019 - a relation lives as long as the program
    def forms(self, language: str) -> tuple[str, ...]:
        """All question forms with the noun phrase filled in; the last is held out for the `templates` split."""
        wording = self.wording(language)
        frames = [frame.format(n=wording.noun) for frame in FRAMES[language]] if wording.noun else []
        turn = _rank(self.key) % len(frames) if frames else 0
        return (*wording.asks, *frames[turn + 1 :], *frames[: turn + 1])


def w(noun: str, asks: tuple[str, ...], answer: str, *tells: str) -> Wording:
    """A wording, briefly."""
    return Wording(noun, asks, answer, tells)


RELATIONS: tuple[Relation, ...] = (
    # --- countries ---
    Relation(
        "country.capital",
        w("the capital of {s}", ("Which city is the capital of {s}?",), "It is {v}.", "The capital of {s} is {v}."),
        w("{s}的首都", ("{s}的首都是哪座城市？", "{s}首都在哪里？"), "{v}。", "{s}的首都是{v}。"),
    ),
    Relation(
        "country.capital",
        w("", ("{v} is the capital of which country?", "Which country has the capital {v}?", "Which country is {v} the capital of?"),
          "It is {s}.", "{v} is the capital of {s}."),
        w("", ("{v}是哪个国家的首都？", "哪个国家的首都是{v}？", "把{v}作为首都的是哪个国家？"), "{s}。", "{v}是{s}的首都。"),
        back=True,
    ),
    Relation(
        "country.continent",
        w("the continent of {s}", ("Which continent is {s} in?", "On which continent is {s}?"), "It is in {v}.", "{s} is in {v}."),
        w("{s}所在的大洲", ("{s}在哪个洲？", "{s}属于哪个大洲？"), "在{v}。", "{s}在{v}。"),
    ),
    Relation(
        "country.region",
        w("the region of {s}", ("In which part of the world is {s}?", "Where is {s}?"), "It is in {v}.", "{s} lies in {v}."),
        w("{s}所在的地区", ("{s}在世界的哪个地区？", "{s}在哪里？"), "在{v}。", "{s}位于{v}。"),
    ),
    Relation(
        "country.currency",
        w("the currency of {s}", ("What money do people use in {s}?", "Which currency does {s} use?"), "It is the {v}.", "{s} uses the {v}."),
        w("{s}的货币", ("{s}用什么货币？", "在{s}花什么钱？"), "{v}。", "{s}的货币是{v}。"),
    ),
    Relation(
        "country.language",
        w("the main language of {s}", ("What language do people speak in {s}?", "Which language is spoken in {s}?"),
          "They speak {v}.", "People in {s} speak {v}."),
        w("{s}的主要语言", ("{s}人说什么语言？", "在{s}说什么话？"), "说{v}。", "{s}人说{v}。"),
    ),
    Relation(
        "country.coast",
        w("", ("Is {s} landlocked, coastal or an island?", "Does {s} touch the sea?", "Does {s} have a coast?", "Does {s} lie by the sea?"),
          "It is {v}.", "{s} is {v}."),
        w("", ("{s}是内陆国、沿海国还是岛国？", "{s}靠海吗？", "{s}有海岸吗？", "{s}临海吗？"), "它是{v}。", "{s}是{v}。"),
    ),
    # --- elements ---
    Relation(
        "element.symbol",
        w("the symbol of {s}", ("How is {s} written in chemistry?", "What is the chemical symbol of {s}?"), "It is {v}.", "The symbol of {s} is {v}."),
        w("{s}的元素符号", ("{s}用什么符号表示？", "元素{s}的符号是什么？"), "{v}。", "{s}的符号是{v}。"),
    ),
    Relation(
        "element.symbol",
        w("", ("Which element has the symbol {v}?", "What element is {v}?", "{v} is the symbol of which element?", "What does the symbol {v} stand for?"),
          "It is {s}.", "{v} is {s}."),
        w("", ("哪个元素的符号是{v}？", "{v}是什么元素？", "{v}表示哪个元素？", "符号{v}代表什么元素？"), "{s}。", "{v}是{s}。"),
        back=True,
    ),
    Relation(
        "element.number",
        w("the atomic number of {s}", ("What number is {s} in the periodic table?", "Which atomic number does {s} have?"),
          "It is {v}.", "The atomic number of {s} is {v}."),
        w("{s}的原子序数", ("{s}是第几号元素？", "{s}的原子序数是多少？"), "{v}。", "{s}的原子序数是{v}。"),
    ),
    Relation(
        "element.number",
        w("", ("Which element is number {v}?", "Which element has atomic number {v}?", "Name element number {v}.", "What is element {v}?"),
          "It is {s}.", "Element {v} is {s}."),
        w("", ("第{v}号元素是什么？", "原子序数是{v}的是什么元素？", "{v}号元素叫什么？", "哪个元素是第{v}号？"), "{s}。", "第{v}号元素是{s}。"),
        back=True,
    ),
    Relation(
        "element.category",
        w("the family of {s}", ("What kind of element is {s}?", "Which family of elements does {s} belong to?"), "It is {v:a}.", "{s} is {v:a}."),
        w("{s}的类别", ("{s}是哪一类元素？", "{s}属于哪类元素？"), "{v}。", "{s}属于{v}。"),
    ),
    Relation(
        "element.period",
        w("the period of {s}", ("In which row of the periodic table is {s}?", "Which period is {s} in?"), "It is period {v}.", "{s} is in period {v}."),
        w("{s}的周期", ("{s}在第几周期？", "{s}在周期表的第几行？"), "第{v}周期。", "{s}在第{v}周期。"),
    ),
    Relation(
        "element.group",
        w("the group of {s}", ("In which column of the periodic table is {s}?", "Which group is {s} in?"), "It is group {v}.", "{s} is in group {v}."),
        w("{s}的族", ("{s}在第几族？", "{s}在周期表的第几列？"), "第{v}族。", "{s}在第{v}族。"),
    ),
    Relation(
        "element.state",
        w("the state of {s}", ("Is {s} solid, liquid or gas?", "In which state is {s} in a warm room?"), "It is {v}.", "In a warm room {s} is {v}."),
        w("{s}的状态", ("{s}是固态、液态还是气态？", "常温下{s}是什么状态？"), "{v}。", "常温下{s}是{v}。"),
    ),
    # --- planets ---
    Relation(
        "planet.order",
        w("the place of {s} from the sun", ("Which planet from the sun is {s}?", "How many planets is {s} from the sun?"),
          "It is number {v}.", "{s} is planet number {v} from the sun."),
        w("{s}离太阳的位次", ("从太阳数起，{s}是第几颗行星？", "{s}离太阳第几近？"), "第{v}颗。", "从太阳数起，{s}是第{v}颗行星。"),
    ),
    Relation(
        "planet.kind",
        w("the kind of planet {s} is", ("What kind of planet is {s}?", "What sort of planet is {s}?"), "It is {v:a}.", "{s} is {v:a}."),
        w("{s}的类型", ("{s}是哪种行星？", "{s}属于哪类行星？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "planet.size_rank",
        w("the rank of {s} by size", ("How does {s} rank by size among the planets?", "Which place does {s} take by size?"),
          "It is number {v}.", "By size {s} is planet number {v}."),
        w("{s}的大小排名", ("{s}的大小排第几？", "按大小{s}是第几大行星？"), "第{v}。", "按大小{s}排第{v}。"),
    ),
    Relation(
        "planet.year",
        w("the length of a year on {s}", ("How long is a year on {s}?", "How long does {s} take to go around the sun?"), "It is {v}.", "A year on {s} is {v}."),
        w("{s}一年的长度", ("{s}上的一年有多长？", "{s}绕太阳一圈要多久？"), "{v}。", "{s}绕太阳一圈要{v}。"),
    ),
    Relation(
        "planet.moons",
        w("the number of moons of {s}", ("How many moons does {s} have?", "How many moons go around {s}?"), "It has {v}.", "The number of moons of {s} is {v}."),
        w("{s}的卫星数", ("{s}有几颗卫星？", "有多少颗卫星绕着{s}转？"), "{v}颗。", "{s}的卫星数是{v}。"),
    ),
    Relation(
        "planet.rings",
        w("", ("Does {s} have rings?", "Are there rings around {s}?", "Has {s} got rings?", "Do rings go around {s}?"), "It {v}.", "{s} {v}."),
        w("", ("{s}有光环吗？", "{s}周围有光环吗？", "{s}带光环吗？", "{s}有没有光环？"), "{v}。", "{s}{v}。"),
    ),
    Relation(
        "planet.colour",
        w("the colour of {s}", ("What colour is {s}?", "Which colour does {s} have?"), "It is {v}.", "{s} is {v}."),
        w("{s}的颜色", ("{s}是什么颜色的？", "{s}看上去是什么颜色？"), "{v}。", "{s}是{v}的。"),
    ),
    Relation(
        "planet.feature",
        w("what {s} is known for", ("What is special about {s}?", "What is {s} known for?"), "It is {v}.", "{s} is {v}."),
        w("{s}的特点", ("{s}有什么特别？", "{s}因什么出名？"), "它是{v}。", "{s}是{v}。"),
    ),
    # --- animals ---
    Relation(
        "animal.animal_class",
        w("the class of {a}", ("What kind of animal is {a}?", "Which class of animals does {a} belong to?"), "It is {v:a}.", "{a} is {v:a}."),
        w("{s}的种类", ("{s}是哪一类动物？", "{s}属于什么动物？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "animal.diet",
        w("the food of {a}", ("What does {a} eat?", "What does {a} live on?"), "It eats {v}.", "{a} eats {v}."),
        w("{s}的食物", ("{s}吃什么？", "{s}爱吃什么？"), "吃{v}。", "{s}吃{v}。"),
    ),
    Relation(
        "animal.habitat",
        w("the home of {a}", ("Where does {a} live?", "Where can I find {a}?"), "Its home: {v}.", "The home of {a}: {v}."),
        w("{s}的家", ("{s}住在哪里？", "在哪里能找到{s}？"), "在{v}。", "{s}住在{v}。"),
    ),
    Relation(
        "animal.legs",
        w("the number of legs of {a}", ("How many legs does {a} have?", "How many legs has {a} got?"), "It has {v}.", "The number of legs of {a} is {v}."),
        w("{s}的腿数", ("{s}有几条腿？", "{s}长着几条腿？"), "{v}条。", "{s}有{v}条腿。"),
    ),
    Relation(
        "animal.feature",
        w("what {a} is known for", ("What is special about {a}?", "What is {a} known for?"), "It has {v}.", "{a} has {v}."),
        w("{s}的特点", ("{s}有什么特别？", "{s}的特别之处在哪里？"), "它有{v}。", "{s}有{v}。"),
    ),
    Relation(
        "animal.young",
        w("the name of a young {s}", ("What is a young {s} called?", "What do you call a baby {s}?"), "It is called {v:a}.", "A young {s} is called {v:a}."),
        w("{s}的幼崽", ("{s}的宝宝叫什么？", "小时候的{s}叫什么？"), "叫{v}。", "{s}的宝宝叫{v}。"),
    ),
    Relation(
        "animal.sound",
        w("the sound of {a}", ("What sound does {a} make?", "What does {a} say?"), "It says {v}.", "{a} says {v}."),
        w("{s}的叫声", ("{s}怎么叫？", "{s}发出什么声音？"), "{v}。", "{s}的叫声是{v}。"),
    ),
    # --- calendar and units ---
    Relation(
        "weekday.number",
        w("the number of {s} in the week", ("Which day of the week is {s}?", "What number is {s} in the week?"), "It is day {v}.", "{s} is day {v} of the week."),
        w("{s}是一周的第几天", ("{s}排在一周的第几天？", "{s}是第几天？"), "第{v}天。", "{s}是一周的第{v}天。"),
    ),
    Relation(
        "month.number",
        w("the number of {s} in the year", ("Which month of the year is {s}?", "What number is {s} in the year?"), "It is month {v}.", "{s} is month {v} of the year."),
        w("{s}是一年的第几个月", ("{s}排在一年的第几个月？", "{s}是第几个月？"), "第{v}个月。", "{s}是一年的第{v}个月。"),
    ),
    Relation(
        "month.days",
        w("the length of {s}", ("How many days does {s} have?", "How long is {s}?"), "It has {v}.", "{s} has {v}."),
        w("{s}的天数", ("{s}有多少天？", "{s}有多长？"), "有{v}。", "{s}有{v}。"),
    ),
    Relation(
        "month.season",
        w("the season of {s}", ("Which season is {s} in?", "In which season does {s} fall?"), "It is {v}.", "{s} is a month of {v}."),
        w("{s}的季节", ("{s}是什么季节？", "{s}在哪个季节？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "holiday.date",
        w("the date of {s}", ("When is {s}?", "On which day is {s}?"), "It is on {v}.", "{s} is on {v}."),
        w("{s}的日期", ("{s}是哪一天？", "{s}在几月几日？"), "{v}。", "{s}在{v}。"),
    ),
    # --- words, colours, shapes ---
    Relation(
        "word.category",
        w("the kind of thing “{s}” is", ("What kind of thing is “{s}”?", "What sort of word is “{s}”?"), "It belongs to: {v}.", "“{s}” belongs to: {v}."),
        w("“{s}”的类别", ("“{s}”是哪一类词？", "“{s}”属于哪一类？"), "属于{v}。", "“{s}”属于{v}。"),
    ),
    Relation(
        "opposite.opposite",
        w("the opposite of “{s}”", ("Which word is the opposite of “{s}”?", "What means the opposite of “{s}”?"), "It is “{v}”.", "The opposite of “{s}” is “{v}”."),
        w("“{s}”的反义词", ("“{s}”的反义词是哪个？", "和“{s}”相反的词是什么？"), "“{v}”。", "“{s}”的反义词是“{v}”。"),
    ),
    Relation(
        "colour.example",
        w("a thing that is {s}", ("What is {s}?", "Which thing is {s}?"), "For example {v}.", "A thing that is {s}: {v}."),
        w("一样{s}的东西", ("什么东西是{s}的？", "哪样东西是{s}的？"), "比如{v}。", "{v}是{s}的。"),
    ),
    Relation(
        "shape.sides",
        w("the number of sides of {a}", ("How many sides does {a} have?", "How many sides has {a} got?"), "It has {v}.", "The number of sides of {a} is {v}."),
        w("{s}的边数", ("{s}有几条边？", "{s}一共有多少条边？"), "{v}条。", "{s}有{v}条边。"),
    ),
    Relation(
        "shape.corners",
        w("the number of corners of {a}", ("How many corners does {a} have?", "How many corners has {a} got?"), "It has {v}.", "The number of corners of {a} is {v}."),
        w("{s}的角数", ("{s}有几个角？", "{s}一共有多少个角？"), "{v}个。", "{s}有{v}个角。"),
    ),
    # --- culture ---
    Relation(
        "person.field",
        w("the field of {s}", ("In which field did {s} work?", "What did {s} work in?"), "It is {v}.", "{s} worked in {v}."),
        w("{s}的领域", ("{s}从事什么领域？", "{s}是做什么的？"), "{v}。", "{s}从事{v}。"),
    ),
    Relation(
        "person.country",
        w("the country of {s}", ("Where did {s} come from?", "Which country was {s} from?"), "It is {v}.", "{s} came from {v}."),
        w("{s}的国家", ("{s}是哪国人？", "{s}来自哪个国家？"), "{v}。", "{s}来自{v}。"),
    ),
    Relation(
        "person.known_for",
        w("what {s} is known for", ("What made {s} famous?", "What is {s} famous for?"), "For {v}.", "{s} is known for {v}."),
        w("{s}出名的原因", ("{s}因什么出名？", "{s}最有名的是什么？"), "{v}。", "{s}以{v}闻名。"),
    ),
    Relation(
        "person.born",
        w("the year {s} was born", ("When was {s} born?", "In which year was {s} born?"), "In {v}.", "{s} was born in {v}."),
        w("{s}出生的年份", ("{s}是哪一年出生的？", "{s}生于哪年？"), "{v}年。", "{s}生于{v}年。"),
    ),
    Relation(
        "work.kind",
        w("the kind of work {s} is", ("What kind of work is {s}?", "What is {s}, a book or a picture?"), "It is {v:a}.", "{s} is {v:a}."),
        w("{s}的类型", ("{s}是一部什么作品？", "{s}属于哪类作品？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "work.creator",
        w("the maker of {s}", ("Who made {s}?", "Whose work is {s}?"), "It is by {v}.", "{s} is by {v}."),
        w("{s}的作者", ("{s}是谁的作品？", "谁创作了{s}？"), "{v}。", "{s}的作者是{v}。"),
    ),
    Relation(
        "landmark.kind",
        w("the kind of place {s} is", ("What kind of place is {s}?", "What sort of sight is {s}?"), "It is {v:a}.", "{s} is {v:a}."),
        w("{s}的类型", ("{s}是什么？", "{s}是哪种景观？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "landmark.country",
        w("the country of {s}", ("Which country is {s} in?", "In which country can I see {s}?"), "It is in {v}.", "{s} is in {v}."),
        w("{s}所在的国家", ("{s}在哪个国家？", "去哪个国家能看到{s}？"), "在{v}。", "{s}在{v}。"),
    ),
    Relation(
        "landmark.continent",
        w("the continent of {s}", ("Which continent is {s} on?", "On which continent can I see {s}?"), "It is in {v}.", "{s} stands in {v}."),
        w("{s}所在的大洲", ("{s}在哪个洲？", "去哪个洲能看到{s}？"), "在{v}。", "{s}位于{v}。"),
    ),
    Relation(
        "food.kind",
        w("the kind of food {s} is", ("What kind of food is {s}?", "What sort of food is {s}?"), "It is {v}.", "{s}: {v}."),
        w("{s}的类别", ("{s}是哪类食物？", "{s}属于什么食物？"), "{v}。", "{s}是{v}。"),
    ),
    Relation(
        "food.colour",
        w("the colour of {s}", ("What colour is {s}?", "Which colour does {s} have?"), "It is {v}.", "The colour of {s} is {v}."),
        w("{s}的颜色", ("{s}是什么颜色的？", "{s}通常是什么颜色？"), "{v}。", "{s}是{v}的。"),
    ),
    Relation(
        "food.grows",
        w("where {s} comes from", ("Where does {s} grow?", "Where do we get {s} from?"), "It comes: {v}.", "{s} comes: {v}."),
        w("{s}的来源", ("{s}长在哪里？", "{s}从哪里来？"), "{v}。", "{s}：{v}。"),
    ),
    Relation(
        "job.does",
        w("the work of {a}", ("What does {a} do?", "What is the job of {a}?"), "A person who {v}.", "{a} {v}."),
        w("{s}的工作", ("{s}做什么？", "{s}是干什么的？"), "{v}。", "{s}的工作是{v}。"),
    ),
    Relation(
        "job.place",
        w("the place of work of {a}", ("Where does {a} work?", "Where can I find {a} at work?"), "In {v}.", "{a} works in {v}."),
        w("{s}工作的地方", ("{s}在哪里工作？", "在哪里能见到工作的{s}？"), "在{v}。", "{s}在{v}工作。"),
    ),
)
UNIT = Relation(  # for every "unit.in BASE"
    "unit",
    w("", ("How many {b} are in one {s}?", "How many {b} make one {s}?", "One {s} is how many {b}?", "How many {b} does one {s} have?"),
      "It is {v}.", "One {s} is {v}."),
    w("", ("一{s}等于多少{b}？", "一{s}有多少{b}？", "多少{b}是一{s}？", "一{s}合多少{b}？"), "{v}。", "一{s}等于{v}。"),
)


def article(noun: str) -> str:
    """The noun with a or an: an owl, a unicorn, an hour; names and plurals are left to the caller."""
    vowel = noun[0].lower() in "aeiou" and not noun.lower().startswith(("uni", "eu", "one", "use", "ewe"))
    return ("an " if vowel or noun.startswith("hour") else "a ") + noun


def fill(form: str, fact: Fact, language: str) -> str:
    """A form with the fact's subject and value; a sentence begins with a capital."""
    subject, value = subject_of(fact, language), value_of(fact, language)
    text = form.replace("{s}", subject).replace("{v}", value)
    if "{a}" in text:
        text = text.replace("{a}", article(subject))
    if "{v:a}" in text:
        text = text.replace("{v:a}", article(value))
    if "{b}" in text:
        base = fact.attribute.removeprefix("in ") if language == "en" else fact.value_zh.lstrip("0123456789.")
        text = text.replace("{b}", base)
    return text[0].upper() + text[1:] if language == "en" and text[0] != "“" else text


def subject_of(fact: Fact, language: str) -> str:
    """The fact's subject in a language."""
    return fact.subject_en if language == "en" else fact.subject_zh


def value_of(fact: Fact, language: str) -> str:
    """The fact's value in a language; a year before our era is said in words."""
    value = fact.value_en if language == "en" else fact.value_zh
    if fact.attribute == "born" and value.startswith("-"):
        return f"{value[1:]} BC" if language == "en" else f"公元前{value[1:]}"
    return value


@functools.cache
def taught() -> dict[str, tuple[tuple[Relation, Fact], ...]]:
    """Kind of thing -> every (relation, fact) that is asked, in table order. A value that has two subjects has no way back."""
    result: dict[str, list[tuple[Relation, Fact]]] = {}
    everything = facts()
    for relation in RELATIONS:
        own = [fact for fact in everything if f"{fact.kind}.{fact.attribute}" == relation.key]
        if relation.back:
            own = [fact for fact in own if sum(fact.value_en == f.value_en or fact.value_zh == f.value_zh for f in own) == 1]
        result.setdefault(own[0].kind if own else relation.key.split(".")[0], []).extend((relation, fact) for fact in own)
    result["unit"] = [(UNIT, fact) for fact in everything if fact.kind == "unit"]
    return {kind: tuple(pairs) for kind, pairs in result.items()}


@functools.cache
def about_subject(kind: str) -> dict[str, tuple[tuple[Relation, Fact], ...]]:
    """English subject -> all (relation, fact) of it, for profiles."""
    result: dict[str, list[tuple[Relation, Fact]]] = {}
    for relation, fact in taught()[kind]:
        if not relation.back:
            result.setdefault(fact.subject_en, []).append((relation, fact))
    return {subject: tuple(pairs) for subject, pairs in result.items()}


def _rank(key: str) -> int:
    return sum(map(ord, key))
