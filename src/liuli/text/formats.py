"""Conversations in every common file format, converted at the border to the one that is used inside.

In: .jsonl, .json (a list, or one object), .parquet (each plain, .gz or .zst) and .txt of ChatGLM rounds, also from a
folder or the Hub. Out: `Conversation`s. The format is told by the keys of each row:

    OpenAI       {"messages": [{"role", "content", "tool_calls"…}]}, "conversations" likewise
    ShareGPT     {"conversations": [{"from": "human|gpt|system|function_call|observation", "value"}], "system", "tools"}
    Alpaca       {"instruction", "input", "output", "system", "history": [[question, answer], …]}
    pairs        {"prompt", "completion"} and the other names in PAIRS; a side may be a list of messages
    ChatGLM      a prompt "[Round 0]\\n问：…\\n答：…\\n[Round 1]\\n问：…\\n答：", or {"prompt", "response", "history"}
    MOSS         {"meta_instruction", "chat": {"turn_1": {"Human", "Inner Thoughts", "Commands", …}}}
    preferences  {"prompt", "chosen", "rejected"} and the variants with the prompt inside: prompt and chosen are read

Tool descriptions in a row ("tools") are added to its system message, for the answers depend on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from liuli.errors import LiuliError
from liuli.text.chat import Conversation, Message, ToolCall
from liuli.text.sources import (
    ReadReport,
    Source,
    file_kind,
    find_sources,
    in_row,
    read_json_lines,
    read_lines,
    read_parquet,
    read_sources,
    shown,
)

KINDS = (".jsonl", ".json", ".parquet", ".txt")

PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("context", "target"),
    ("question", "answer"),
    ("query", "response"),
    ("content", "summary"),
)
"""What is asked and what is answered, by the keys that data sets use for it."""

Messages = list[Message]


Sources = str | Path | Source | Sequence[str | Path | Source]
Row = Mapping[str, Any]
T = TypeVar("T")


def read_conversations(
    sources: Sources, skip_bad: bool = False, report: ReadReport | None = None
) -> Iterator[Conversation]:
    """Read conversations in order. A row in no known format is an error with file, row and field, or is counted.

    sources: files, folders or Hub datasets, each perhaps with a weight. report: filled as it goes.
    """
    yield from read_rows(sources, KINDS, _conversation, skip_bad, report, "conversation")


def _conversation(row: Row, place: str) -> list[Conversation]:
    messages = messages_of(row)
    if not messages:
        raise LiuliError("the conversation has no messages")
    name = row.get("id", row.get("conversation_id"))
    file = place.rpartition(":")[0]
    return [Conversation(tuple(messages), place if name is None else shown(str(name)), file)]


def read_rows(
    sources: Sources,
    kinds: tuple[str, ...],
    convert: Callable[[Row, str], list[T]],
    skip_bad: bool,
    report: ReadReport | None,
    wanted: str = "comparison, thumb or task",
) -> Iterator[T]:
    """What `convert` (row, its place) makes of each row of all files, without its nulls: a column of parquet stands in
    every row. A bad row is an error that names file, row and field, or is counted; one of which nothing is made is a
    tie, and counted.
    """
    report = report if report is not None else ReadReport()
    sources = [sources] if isinstance(sources, str | Path | Source) else sources

    def converted(file: Path, source: Source) -> Iterator[T | LiuliError]:
        for number, row in _read_rows(file):
            if isinstance(row, LiuliError):
                yield row
                continue
            known = {key: value for key, value in row.items() if value is not None}
            try:
                made = convert(known, shown(f"{file}:{number}"))
            except LiuliError as error:
                yield in_row(error, file, number)
                continue
            if not made:
                report.skip(LiuliError("a tie: the judge prefers neither", f"{file}, row {number}"))
            yield from made

    yield from read_sources(find_sources(sources, kinds), converted, skip_bad, report)
    if not report.documents:
        bad = f" ({report.skipped} rows were skipped)" if report.skipped else ""
        raise LiuliError(f"no {wanted} found{bad}", ", ".join(map(str, sources)), "give other files")


# --- rows of a file --------------------------------------------------------------------------------------------------


def _read_rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | LiuliError]]:
    kind = file_kind(file, KINDS)
    if kind == ".jsonl":
        yield from read_json_lines(file)
    elif kind == ".json":
        yield from _read_json(file)
    elif kind == ".parquet":
        yield from read_parquet(file)
    else:
        yield from _read_rounds(file)


def _read_json(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | LiuliError]]:
    lines = []
    for number, line in read_lines(file):
        if isinstance(line, LiuliError):
            yield number, line
            return
        lines.append(line)
    try:
        value = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        yield 1, LiuliError(f"the file is not JSON: {error}", file, "if it holds one object a line, name it .jsonl")
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], 1):
        good = isinstance(row, dict)
        yield number, row if good else LiuliError("the entry is no JSON object", f"{file}, row {number}")


def _read_rounds(file: Path) -> Iterator[tuple[int, Mapping[str, Any] | LiuliError]]:
    """ChatGLM rounds in plain text; a conversation begins where the round's number does not go up."""
    held, first, last = list[str](), 1, -1
    for number, line in read_lines(file):
        if isinstance(line, LiuliError):
            yield number, line
            continue
        found = _ROUND_LINE.match(line)
        if found:
            if held and int(found[1]) <= last:
                yield first, {"text": "\n".join(held).strip()}
                held = []
            last = int(found[1])
        first = first if held else number
        held.append(line)
    if "".join(held).strip():
        yield first, {"text": "\n".join(held).strip()}


# --- one row ---------------------------------------------------------------------------------------------------------


def messages_of(row: Mapping[str, Any]) -> Messages:
    """The messages of a row of any known format. Raises LiuliError whose `where` is the field."""
    if "chosen" in row:
        messages = _preference(row)
    elif "messages" in row or "conversations" in row:
        messages = _listed(row)
    elif "chat" in row:
        messages = _moss(row)
    elif "text" in row and (_ROUND_LINE.match(_text(row, "text")) or "<|Human|>" in row["text"]):
        messages = _moss_text(row["text"]) if "<|Human|>" in row["text"] else rounds(row["text"])
    else:
        messages = _pair(row)
    if row.get("label") is False:  # an answer marked as bad is not to be learned
        messages = [replace(message, train=False) for message in messages]
    return _with_system(messages, row)


def _with_system(messages: Messages, row: Mapping[str, Any]) -> Messages:
    """The row's own system text and tool descriptions before the messages, in one system message."""
    system = row.get("system") or row.get("meta_instruction") or ""
    tools = row.get("tools") or ""
    if not isinstance(system, str):
        raise LiuliError("the system text is no text", "system")
    tools = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    tools = f"Tools:\n{tools}" if tools.strip() not in ("", "[]") else ""
    own, rest = (messages[:1], messages[1:]) if messages and messages[0].role == "system" else ([], messages)
    parts = [part for part in (system.strip(), *(message.content for message in own), tools) if part]
    return [Message("system", "\n\n".join(parts)), *rest] if parts else messages


def _listed(row: Mapping[str, Any], key: str | None = None) -> Messages:
    """OpenAI's messages or ShareGPT's turns."""
    key = key or ("messages" if "messages" in row else "conversations")
    value = row[key]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise LiuliError("not a list of messages", key)
    return [_turn(item, f"{key}[{number}]", number) for number, item in enumerate(value)]


SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant"}
SHAREGPT |= {"system": "system", "observation": "tool", "tool": "tool", "function_call": "assistant"}


def _turn(item: Any, field: str, number: int) -> Message:
    if not isinstance(item, Mapping):
        raise LiuliError(f"a message is {type(item).__name__}, not an object", field)
    try:
        if "from" not in item:
            return Message.from_dict({key: value for key, value in item.items() if value is not None})
        return _sharegpt(item, field, number)
    except LiuliError as error:
        raise LiuliError(error.what, error.where or field, error.fix) from error


def _sharegpt(item: Mapping[str, Any], field: str, number: int) -> Message:
    role = SHAREGPT.get(str(item["from"]))
    if role is None:
        raise LiuliError(f"an unknown speaker {item['from']!r}", f"{field}.from", f"known: {', '.join(SHAREGPT)}")
    text = item.get("value", "")
    if not isinstance(text, str):
        raise LiuliError("what is said is no text", f"{field}.value")
    if item["from"] != "function_call":
        return Message(role, text, train=bool(item.get("train", True)))
    try:
        calls = json.loads(text)
        calls = calls if isinstance(calls, list) else [calls]
    except ValueError as error:
        raise LiuliError(f"the call is not JSON: {error}", f"{field}.value") from error
    named = [{**call, "id": f"call_{number}_{n}"} if isinstance(call, dict) else call for n, call in enumerate(calls)]
    return Message.from_dict({"role": role, "tool_calls": named})


def _pair(row: Mapping[str, Any], answer: Any = None) -> Messages:
    """A question and an answer, each a text or a list of messages, with a history before them."""
    question_key, answer_key = _keys(row, answer is None)
    answer = row[answer_key] if answer is None else answer
    if isinstance(answer, list) and answer and isinstance(answer[0], str):
        answer = answer[0]  # a ranking: the best comes first
    return [*_history(row), *_question(row, question_key), *_answer(answer, answer_key)]


def _keys(row: Mapping[str, Any], both: bool) -> tuple[str, str]:
    for question, answer in PAIRS:
        if question in row and (answer in row or not both):
            return question, answer if both else "chosen"
    asked = [question for question, _ in PAIRS if question in row]
    if asked:
        known = " or ".join(answer for question, answer in PAIRS if question == asked[0])
        raise LiuliError(f"the row has {asked[0]!r} but no answer", known)
    keys = ", ".join(list(row)[:8]) or "nothing"
    raise LiuliError(
        f"no known conversation format; the row has: {keys}",
        fix="known: messages, conversations, chat, chosen, or " + ", ".join("+".join(pair) for pair in PAIRS),
    )


def _history(row: Mapping[str, Any]) -> Messages:
    messages: Messages = []
    history = row.get("history", [])
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise LiuliError("the history is no list of [question, answer]", "history")
    for number, turn in enumerate(history):
        good = isinstance(turn, Sequence) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        if not good or isinstance(turn, str):
            raise LiuliError("a turn of the history is no [question, answer]", f"history[{number}]")
        messages += [Message("user", turn[0]), Message("assistant", turn[1])]
    return messages


def _question(row: Mapping[str, Any], key: str) -> Messages:
    if not isinstance(row[key], str):
        return _listed(row, key)
    text = _text(row, key)
    if _ROUND_LINE.match(text):
        return rounds(text)
    if dialogue := hh_prompt(text):
        return dialogue
    if key == "context":  # Med-ChatGLM and InstructGLM write the cue into the question
        text = re.sub(r"^(问题：|Instruction: )", "", re.sub(r"\s*(回答|Answer)[:：]\s*$", "", text))
    if key != "context" and row.get("context"):  # a question about a passage
        text = f"{_text(row, 'context')}\n\n{text}"
    extra = _text(row, "input") if row.get("input") else ""
    return [Message("user", f"{text}\n{extra}" if extra else text)]


def _answer(value: Any, key: str) -> Messages:
    if isinstance(value, str):
        return [Message("assistant", value)]
    if isinstance(value, Mapping):
        return [_turn(value, key, 0)]
    if isinstance(value, list):
        return _listed({key: value}, key)
    raise LiuliError("the answer is no text", key)


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise LiuliError("not a text", key)
    return str(row[key])


# --- the formats with an inner grammar -------------------------------------------------------------------------------

_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_HH_PROMPT = re.compile(r"\s*Human:(.*\s)Assistant:\s*\Z", re.DOTALL)
_ROUND_LINE = re.compile(r"\[Round (\d+)\]\s*(?:\n|$)")
_ROUND = re.compile(r"(?:^|\n)\[Round \d+\]\n+")


def _preference(row: Mapping[str, Any]) -> Messages:
    """The prompt and the chosen answer; with no prompt of its own, `chosen` holds both."""
    chosen = row["chosen"]
    if "conversations" in row or "messages" in row:
        return [*_listed(row), *_answer(chosen, "chosen")]
    if any(question in row for question, _ in PAIRS):
        return _pair(row, chosen)
    if isinstance(chosen, list):
        return _listed(row, "chosen")
    return _hh(_text(row, "chosen"))


def _hh(text: str) -> Messages:
    """Anthropic's "\\n\\nHuman: …\\n\\nAssistant: …"; an empty answer at the end is a prompt's cue, not a message."""
    parts = _HH.split(text)
    if len(parts) < 3 or parts[0].strip():
        raise LiuliError('no prompt, and no "Human:" and "Assistant:" inside', "chosen")
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    messages = [Message("user" if who == "Human" else "assistant", said.strip()) for who, said in pairs]
    return messages[:-1] if messages[-1].role == "assistant" and not messages[-1].content else messages


def hh_prompt(text: str) -> Messages:
    """A text that begins with "Human:" and ends in the cue "Assistant:"; no messages for any other. BELLE's have one
    line feed before each."""
    found = _HH_PROMPT.match(text)
    if not found:
        return []
    said = found[1].rstrip()
    if "\n\nAssistant:" not in said:
        said = re.sub(r"\n(Human|Assistant):", r"\n\n\1:", said)
    return _hh(f"Human:{said}\n\nAssistant:")


def rounds(text: str) -> Messages:
    """ChatGLM's "[Round 0]\\n问：…\\n答：…", or with doubled line feeds; an empty last answer is a prompt's cue."""
    messages: Messages = []
    for number, part in enumerate(_ROUND.split(text)[1:]):
        asked, found, answered = part.strip().partition("\n答：")
        if not asked.startswith("问：") or not (found or part.strip().endswith("答：")):
            raise LiuliError(f"round {number} of the text is not 问：…答：…", "text")
        messages.append(Message("user", asked.removeprefix("问：").strip()))
        if answered.strip():
            messages.append(Message("assistant", answered.strip()))
    return messages


_MOSS_PART = re.compile(r"<\|(Human|Inner Thoughts|Commands|Results|MOSS)\|>:")
_MOSS_END = re.compile(r"<eo[htcrm]>\s*$")
_MOSS_KEYS = ("Human", "Inner Thoughts", "Commands", "Tool Responses", "MOSS")
_MOSS_CALL = re.compile(r'\s*(\w+)\("((?:[^"\\]|\\.)*)"\)\s*(?:,|$)', re.DOTALL)
MOSS_ARGUMENTS = {"Search": "query", "Calculate": "expression", "Solve": "equations", "Text2Image": "description"}


def _moss(row: Mapping[str, Any]) -> Messages:
    """MOSS: the values carry their markers, so that the turns laid end to end are its plain text form."""
    if not isinstance(row["chat"], Mapping):
        raise LiuliError("not an object of turns", "chat")
    text = ""
    for name, turn in row["chat"].items():
        if turn is None:  # a shorter dialogue, in a column of parquet
            continue
        if not isinstance(turn, Mapping) or not isinstance(turn.get("Human"), str):
            raise LiuliError("the turn has no 'Human'", f"chat.{name}")
        text += "".join(str(turn.get(key) or "") for key in _MOSS_KEYS)
    return _moss_text(text)


def _moss_text(text: str) -> Messages:
    messages: Messages = []
    thought, calls = "", 0
    parts = _MOSS_PART.split(text)
    for kind, said in zip(parts[1::2], parts[2::2], strict=True):
        said = _MOSS_END.sub("", said).strip()
        if said == "None" and kind != "Human":
            continue
        if kind == "Human":
            messages.append(Message("user", said))
        elif kind == "Inner Thoughts":
            thought = said
        elif kind == "Results":
            messages.append(Message("tool", said, tool_call_id=f"call_{calls - 1}" if calls else None))
        else:
            found = _moss_calls(said, calls) if kind == "Commands" else ()
            calls += len(found)
            messages.append(Message("assistant", "" if found else said, found, thought=thought))
            thought = ""
    return messages


def _moss_calls(text: str, first: int) -> tuple[ToolCall, ...]:
    """The calls in `Search("q"), Calculate("1+1")`; none if any of it is not one (the text is then kept as it is)."""
    calls, place = list[ToolCall](), 0
    while place < len(text):
        found = _MOSS_CALL.match(text, place)
        if not found:
            return ()
        name, value = found[1], found[2].replace('\\"', '"')
        arguments = json.dumps({MOSS_ARGUMENTS.get(name, "input"): value}, ensure_ascii=False)
        calls.append(ToolCall(name, arguments, f"call_{first + len(calls)}"))
        place = found.end()
    return tuple(calls)
