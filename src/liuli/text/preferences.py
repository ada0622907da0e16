"""Comparisons, thumbs and checkable tasks in every common file format, converted at the border to three types.

In: .jsonl, .json or .parquet (also .gz, .zst, folders, the Hub). Out: `Preference` (of two answers one is better),
`Judged` (one answer, good or bad), `Task` (a prompt whose answer can be checked). Knows nothing of models or tokens.
A prompt is "prompt", "instruction" (+ "input"), "question" (+ "passages"), "query" or a list in "messages" or
"conversations", each with "history", "system", "tools". The comparison is told by the keys of the row:

    pairs        {"chosen", "rejected"}: texts or messages, with or without the prompt inside; "margin" or both scores
    Anthropic    {"chosen", "rejected"} "\\n\\nHuman: …\\n\\nAssistant: …"; DeepSpeed's prompt "Human: … Assistant:"
    rankings     {"answers" or "output": [best, …, worst]}; {"completions": [{"response", "overall_score"}, …]}
    TL;DR        {"info": {"post", "title", "subreddit"}, "summaries": [{"text"}, {"text"}], "choice"}
    2019         {"query", "sample0", …, "best"}
    numbered     AlpacaEval {"output_1", …, "preference"}; Auto-J {"response 1", …, "label"}; {"prediction 1", …}
    Prometheus   {"chosen_instruction", "rejected_instruction"}: the same request to a judge, with another response

Thumbs: {"completion" and the like, or a dialogue; "label" or "kto_tag": true or false}; stepwise {"completions": [step,
…], "labels": [true, …]}: good if all steps are, else bad up to the first wrong one. Tasks: {"answer", "gt", "label" or
"reward_model": {"ground_truth"}}, or {"tests" or MBPP's "test_list": Python that asserts what a program must do}; after
a "question" the answer is what follows GSM8K's "####".

Role markers inside a text are text. Only Anthropic's strings are parsed for them (those without a prompt of their own,
and prompts that begin with "Human:" and end with "Assistant:"), and there only at the beginning of a paragraph.
An answer that is a bare string loses the spaces around it, which would tell a reward model who wrote it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import combinations
from typing import Any

from liuli.errors import LiuliError
from liuli.text.chat import Message
from liuli.text.formats import Row, Sources, _answer, _hh, _text, hh_prompt, messages_of, read_rows
from liuli.text.sources import ReadReport, shown

KINDS = (".jsonl", ".json", ".parquet")
Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison: `chosen` is better than `rejected`, each all that the assistant did after the prompt.

    group: comparisons of the same prompt share it, and a ranking of K answers is one unit; margin: how much better.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    who: str = ""
    group: str = ""
    margin: float | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with a thumb up or down."""

    prompt: Messages
    answer: Messages
    good: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt whose answer can be checked: `answer` is the expected one, or `tests` the Python that it must pass."""

    prompt: Messages
    answer: str
    source: str = ""
    tests: str = ""


def read_preferences(
    sources: Sources, skip_bad: bool = False, report: ReadReport | None = None
) -> Iterator[Preference]:
    """Read comparisons in order; a ranking gives a pair for every two of its answers.

    Where the judge prefers neither there is no pair; a row of ties only is counted as skipped in the report. Raises
    LiuliError for a bad row (file, row, field), unless skip_bad: then it is counted; and if nothing is found.
    """
    yield from read_rows(sources, KINDS, _compare, skip_bad, report)


def read_judged(sources: Sources, skip_bad: bool = False, report: ReadReport | None = None) -> Iterator[Judged]:
    """Read single answers with their thumbs, in order.

    Raises LiuliError as `read_preferences`, and at the end if all were good or all bad, from which nothing is learned.
    """
    report = report if report is not None else ReadReport()
    seen: dict[bool, str] = {}
    for judged in read_rows(sources, KINDS, _thumb, skip_bad, report):
        seen.setdefault(judged.good, judged.source)
        yield judged
    for good, source in seen.items() if len(seen) == 1 else ():
        what = f"every answer from here on is marked {'good' if good else 'bad'}"
        error = LiuliError(what, source, "give files with both, for only their difference is learned")
        if not skip_bad:
            raise error
        report.note(error)


def read_tasks(sources: Sources, skip_bad: bool = False, report: ReadReport | None = None) -> Iterator[Task]:
    """Read prompts with the answers that are expected, in order. Raises LiuliError as `read_preferences`."""
    yield from read_rows(sources, KINDS, _task, skip_bad, report)


def preference_line(preference: Preference) -> dict[str, Any]:
    """A line of .jsonl that `read_preferences` reads as the same comparison."""
    p = preference
    line = {"prompt": _dicts(p.prompt), "chosen": _dicts(p.chosen), "rejected": _dicts(p.rejected)}
    margin = {} if p.margin is None else {"margin": p.margin}
    return {**line, "who": p.who, "group": p.group, **margin, "from_row": p.source}


def judged_line(judged: Judged) -> dict[str, Any]:
    """A line of .jsonl that `read_judged` reads as the same thumb."""
    line = {"prompt": _dicts(judged.prompt), "completion": _dicts(judged.answer)}
    return {**line, "label": judged.good, "from_row": judged.source}


def task_line(task: Task) -> dict[str, Any]:
    """A line of .jsonl that `read_tasks` reads as the same task."""
    check = {"tests": task.tests} if task.tests else {"answer": task.answer}
    return {"prompt": _dicts(task.prompt), **check, "from_row": task.source}


def _bare(messages: Messages) -> Messages:
    """Messages without the ids of calls, which no model reads."""
    calls = [tuple(replace(call, id="") for call in message.tool_calls) for message in messages]
    return tuple(replace(m, tool_calls=own, tool_call_id=None) for m, own in zip(messages, calls, strict=True))


def _dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.to_dict() for message in messages]


# --- rows ------------------------------------------------------------------------------------------------------------


def _compare(row: Row, source: str) -> list[Preference]:
    prompt, answers, pairs = _found(row)
    _check_prompt(prompt)
    for field, answer in answers.items():
        _check_answer(answer, field)
    for better, worse, _ in pairs:
        if _bare(answers[better]) == _bare(answers[worse]):
            raise LiuliError("the better and the worse answer are the same", f"{better} and {worse}")
    who = next((shown(row[key]) for key in ("who", "annotator", "worker") if isinstance(row.get(key), str)), "")
    group = hashlib.blake2b(_encoded(prompt, "prompt"), digest_size=8).hexdigest()
    if "from_row" in row:  # a line of our own; elsewhere "group" may be anything, and "source" is the data set's
        group, source = str(row.get("group", group)), str(row["from_row"])
    return [Preference(prompt, answers[b], answers[w], who, group, margin, source) for b, w, margin in pairs]


def _thumb(row: Row, source: str) -> list[Judged]:
    if "completions" in row and "labels" in row:
        row = _steps(row)
    mark = next((key for key in ("kto_tag", "label") if key in row), None)
    if mark is None:
        raise _unknown(row, "label or kto_tag")
    if not isinstance(row[mark], bool):
        raise LiuliError(f"the mark is {_brief(row[mark])}, not true or false", mark)
    key = next((key for key in ("completion", "response", "output", "answer") if key in row), None)
    messages = _prompt(row)
    prompt, answer = (messages, _said(row[key], key)) if key else _split(messages, "messages")
    _check_prompt(prompt)
    _check_answer(answer, key or "messages")
    return [Judged(prompt, answer, row[mark], str(row.get("from_row", source)))]


def _steps(row: Row) -> Row:
    """A stepwise row as one answer: up to its first wrong step it is bad, whole and without one it is good."""
    steps, labels = row["completions"], row["labels"]
    if not all(isinstance(part, list) and part for part in (steps, labels)) or len(steps) != len(labels):
        raise LiuliError("not as many labels as steps", "completions and labels")
    if not all(isinstance(step, str) for step in steps) or not all(isinstance(label, bool) for label in labels):
        raise LiuliError("a step is no text, or its label neither true nor false", "completions and labels")
    kept = steps if all(labels) else steps[: labels.index(False) + 1]
    rest = {key: value for key, value in row.items() if key not in ("completions", "labels")}
    return {**rest, "completion": "\n".join(kept), "label": all(labels)}


def _task(row: Row, source: str) -> list[Task]:
    prompt, source = _prompt(row), str(row.get("from_row", source))
    _check_prompt(prompt)
    if field := next((key for key in ("tests", "test_list") if key in row), ""):
        return [Task(prompt, "", source, _python(row[field], field))]
    answer, field = _expected(row)
    _check_answer((Message("assistant", answer),), field)
    return [Task(prompt, answer, source)]


def _python(tests: Any, field: str) -> str:
    """Tests as one Python program, which must at least be one."""
    text = "\n".join(tests) if isinstance(tests, list) and all(isinstance(t, str) for t in tests) else tests
    try:
        compile(text, field, "exec")
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise LiuliError(f"the tests are no Python: {error}", field) from error
    if not text.strip():
        raise LiuliError("there are no tests", field)
    return str(text)


def _expected(row: Row) -> tuple[str, str]:
    """The answer that a task expects, and its field."""
    nested = row.get("reward_model")
    field = next((key for key in ("answer", "gt", "label") if key in row), "")
    if isinstance(nested, Mapping) and "ground_truth" in nested:
        value, field = nested["ground_truth"], "reward_model.ground_truth"
    elif field and not (field == "label" and "response 1" in row):  # Auto-J's label is a verdict
        value = row[field]
    else:
        raise _unknown(row, "answer, gt, label or reward_model.ground_truth")
    if not isinstance(value, str):
        _number(value, field)
        return f"{Decimal(str(value)):f}", field  # as people write it: 0.00001, not 1e-05
    _, mark, final = value.rpartition("####")
    gsm8k = mark and field == "answer" and "question" in row
    return final.replace(",", "").strip() if gsm8k else value, field


# --- what is asked and what is answered ------------------------------------------------------------------------------

_ASKED = ("prompt", "instruction", "question", "query")


def _prompt(row: Row) -> Messages:
    """History, question, and the system text and tools of a row; or the messages it lists, the answer among them."""
    around = {key: row[key] for key in ("system", "tools") if key in row}
    key = next((key for key in _ASKED if key in row), None)
    if key is None:
        listed = {key: row[key] for key in ("messages", "conversations") if key in row}
        if not listed:
            raise LiuliError("the row has no prompt", fix=f"known: {', '.join(_ASKED)}, messages, conversations")
        return tuple(messages_of({**around, **listed, "chosen": []}))
    history = {"history": row["history"]} if "history" in row else {}
    return tuple(messages_of({**around, **history, "prompt": _question(row, key), "chosen": []}))


def _question(row: Row, key: str) -> Any:
    """The question as a list of messages, so that nothing in its text is taken for a format."""
    text = row[key]
    if not isinstance(text, str):
        return text
    if dialogue := hh_prompt(text):
        return _dicts(dialogue)
    context = [_text(row, "context")] if row.get("context") and key != "context" else []
    parts = [*_passages(row.get("passages", [])), *context, f"{text}\n{row['input']}" if row.get("input") else text]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _passages(passages: Any) -> list[str]:
    """QA-Feedback's passages, each [title, sentence, …]."""
    for passage in passages if isinstance(passages, list) else [None]:
        if not isinstance(passage, list) or not all(isinstance(text, str) for text in passage):
            raise LiuliError("a passage is no list of texts", "passages")
    return [f"{passage[0]}\n{' '.join(passage[1:])}" for passage in passages if passage]


def _said(value: Any, field: str) -> Messages:
    return tuple(_answer(value.strip() if isinstance(value, str) else value, field))


def _split(messages: Messages, field: str) -> tuple[Messages, Messages]:
    """A dialogue cut after the last message of the user."""
    asked = [number for number, message in enumerate(messages) if message.role == "user"]
    if not asked:
        raise LiuliError("no message of a user, and so no prompt", field, "give a prompt, or whole dialogues")
    return messages[: asked[-1] + 1], messages[asked[-1] + 1 :]


def _check_prompt(prompt: Messages) -> None:
    if not prompt or prompt[-1].role not in ("user", "tool"):
        raise LiuliError("the prompt does not end with a message of a user or a tool", "prompt")
    _encoded(prompt, "prompt")


def _check_answer(answer: Messages, field: str) -> None:
    if not answer or not (answer[-1].content.strip() or answer[-1].tool_calls):
        raise LiuliError("the answer is empty", field)
    roles = [message.role for message in answer]
    if not set(roles) <= {"assistant", "tool"} or "tool" in (roles[0], roles[-1]):
        raise LiuliError(f"the answer holds messages of {', '.join(roles)}", field, "begin and end with the assistant")
    _encoded(answer, field)


def _encoded(messages: Messages, field: str) -> bytes:
    try:
        return json.dumps(_dicts(messages), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LiuliError("the text holds half a surrogate pair", field) from error


def _number(value: Any, field: str) -> float:
    """A finite number; NaN fails the comparison, as does an integer that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise LiuliError(f"{_brief(value)} is no finite number", field)
    return float(value)


def _brief(value: Any) -> str:
    return shown(repr(value)[:40])


def _unknown(row: Row, known: str) -> LiuliError:
    keys = ", ".join(map(shown, list(row)[:8])) or "nothing"
    return LiuliError(f"no known format; the row has: {keys}", fix=f"known: {known}")


# --- the formats of comparisons --------------------------------------------------------------------------------------

Pairs = list[tuple[str, str, float | None]]
Found = tuple[Messages, dict[str, Messages], Pairs]
"""The prompt, the answers by their fields, and (better field, worse field, margin) of every comparison."""


def _found(row: Row) -> Found:
    for keys, read in _FORMATS:
        if all(key in row for key in keys):
            return read(row)
    raise _unknown(row, ", ".join("+".join(keys) for keys, _ in _FORMATS))


def _pair(row: Row) -> Found:
    has_prompt = any(key in row for key in (*_ASKED, "messages", "conversations"))
    answers = {}
    for side in ("chosen", "rejected"):
        whole = isinstance(row[side], str) and not has_prompt
        answers[side] = _dialogue(row[side], side) if whole else _said(row[side], side)
    pairs: Pairs = [("chosen", "rejected", _margin(row))]
    if not any(message.role == "user" for answer in answers.values() for message in answer):
        return _prompt(row), answers, pairs
    prompt, chosen = _split(answers["chosen"], "chosen")
    other, rejected = _split(answers["rejected"], "rejected")
    asked = [message.content for message in _prompt(row)] if "prompt" in row else [prompt[-1].content]
    if prompt != other or prompt[-1].content not in asked:
        raise LiuliError("the prompts differ", "chosen and rejected", "compare two answers to one prompt")
    around = {key: row[key] for key in ("system", "tools") if key in row}
    return _prompt({**around, "prompt": _dicts(prompt)}), {"chosen": chosen, "rejected": rejected}, pairs


def _dialogue(text: str, field: str) -> Messages:
    try:
        return tuple(_hh(text))
    except LiuliError as error:
        raise LiuliError(error.what, field, "give the prompt, or Anthropic's Human: and Assistant:") from error


def _margin(row: Row) -> float | None:
    if "margin" in row:
        return _number(row["margin"], "margin")
    for better, worse in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        if better in row and worse in row:
            margin = _number(row[better], better) - _number(row[worse], worse)
            if margin < 0:
                raise LiuliError("the rejected answer has the higher score", f"{better} and {worse}")
            return margin
    return None


def _ranking(row: Row, key: str) -> Found:
    values = _items(row, key)
    answers = {f"{key}[{number}]": _said(value, f"{key}[{number}]") for number, value in enumerate(values)}
    return _prompt(row), answers, [(better, worse, None) for better, worse in combinations(answers, 2)]


def _scored(row: Row) -> Found:
    answers, scores = {}, {}
    for number, value in enumerate(_items(row, "completions")):
        field = f"completions[{number}]"
        key = next((key for key in ("overall_score", "score") if isinstance(value, Mapping) and key in value), None)
        if key is None:
            raise LiuliError("a completion is no object with response and overall_score", field)
        answers[field] = _said(value.get("response"), f"{field}.response")
        scores[field] = _number(value[key], f"{field}.{key}")
    ordered = sorted(scores, key=scores.__getitem__, reverse=True)
    return _prompt(row), answers, [(b, w, d) for b, w in combinations(ordered, 2) if (d := scores[b] - scores[w]) > 0]


def _tldr(row: Row) -> Found:
    info = row["info"] if isinstance(row["info"], Mapping) else {}
    post = info.get("post") or info.get("article")
    if not isinstance(post, str):
        raise LiuliError("no post to summarize", "info.post")
    named = {"SUBREDDIT: r/": info.get("subreddit"), "TITLE: ": info.get("title"), "POST: ": post}
    text = "\n\n".join([*(f"{name}{value}" for name, value in named.items() if value), "TL;DR:"])  # arXiv 2009.01325
    given = [item.get("text") if isinstance(item, Mapping) else None for item in _items(row, "summaries")]
    summaries = {f"summaries[{number}].text": summary for number, summary in enumerate(given)}
    return _picked((Message("user", text),), summaries, row, "choice")


def _samples(row: Row) -> Found:
    samples = {key: row[key] for key in (f"sample{number}" for number in range(len(row))) if key in row}
    return _picked(_prompt(row), samples, row, "best")


def _picked(prompt: Messages, texts: Mapping[str, Any], row: Row, key: str) -> Found:
    """The one that was picked is better than each of the others; nothing is known between those."""
    fields, best = list(texts), row[key]
    if isinstance(best, bool) or not isinstance(best, int) or not 0 <= best < len(fields):
        raise LiuliError(f"{_brief(best)} is no number of an answer, 0 to {len(fields) - 1}", key)
    answers = {field: _said(text, field) for field, text in texts.items()}
    return prompt, answers, [(fields[best], field, None) for field in fields if field != fields[best]]


_FROM_ZERO: Mapping[float, int] = {0: 1, 1: -1, 2: 0}
_FROM_ONE: Mapping[float, int] = {1: 1, 2: -1, 0: 0, 1.5: 0}
"""What a verdict says of the first answer: 1 better, -1 worse, 0 a tie."""


def _numbered(row: Row, name: str, key: str, verdicts: Mapping[float, int]) -> Found:
    """Answers with numbers in their names, and a verdict for every two of them, in order."""
    fields = [field for field in (name.format(number + 1) for number in range(len(row))) if field in row]
    given = row[key] if isinstance(row[key], list) else [row[key]]
    ways = [verdicts.get(_number(value, key)) for value in given]
    couples = list(combinations(fields, 2))
    if None in ways or len(ways) != len(couples):
        fix = f"{len(couples)} verdicts, each one of {', '.join(map(str, verdicts))}"
        raise LiuliError(f"{_brief(row[key])} is no verdict on the answers", key, fix)
    decided = [(a, b, way) for (a, b), way in zip(couples, ways, strict=True) if way]
    pairs: Pairs = [(a, b, None) if way == 1 else (b, a, None) for a, b, way in decided]
    return _prompt(row), {field: _said(row[field], field) for field in fields}, pairs


_REQUEST = re.compile(
    r"(?s)###The instruction to evaluate:\n(.*?)\n\n###Response to evaluate:\n(.*)\n\n###Score Rubrics:"
)


def _prometheus(row: Row) -> Found:
    """Two requests to a judge; the dialogue in each lacks the first "Human:"."""
    sides = {}
    for side in ("chosen", "rejected"):
        found = _REQUEST.search(str(row[f"{side}_instruction"]))
        if not found:
            raise LiuliError("no instruction and response to evaluate", f"{side}_instruction")
        sides[side] = _dicts([*_hh(f"Human: {found[1]}"), *_said(found[2], side)])
    return _pair(sides)


def _items(row: Row, key: str) -> list[Any]:
    if not isinstance(row[key], list) or len(row[key]) < 2:
        raise LiuliError("no list of at least two answers", key)
    return list(row[key])


_FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row], Found]], ...] = (
    (("chosen", "rejected"), _pair),
    (("chosen_instruction", "rejected_instruction"), _prometheus),
    (("info", "summaries", "choice"), _tldr),
    (("sample0", "sample1", "best"), _samples),
    (("output_1", "output_2", "preference"), lambda row: _numbered(row, "output_{}", "preference", _FROM_ONE)),
    (("response 1", "response 2", "label"), lambda row: _numbered(row, "response {}", "label", _FROM_ZERO)),
    (("prediction 1", "preference"), lambda row: _numbered(row, "prediction {}", "preference", _FROM_ONE)),
    (("completions",), _scored),
    (("answers",), lambda row: _ranking(row, "answers")),
    (("output",), lambda row: _ranking(row, "output")),
)
