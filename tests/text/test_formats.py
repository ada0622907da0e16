"""Promises of reading conversations: every known shape gives the same messages, and errors name file, row and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from liuli.errors import LiuliError, UsageError
from liuli.text import Message, ReadReport, ToolCall, read_conversations

U, A = Message("user", "1+1?"), Message("assistant", "2")
U0, A0 = Message("user", "Hi"), Message("assistant", "Hello")
S = Message("system", "Be brief.")


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


MOSS_TURN = {
    "Human": "<|Human|>: 1+1?<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": "<|MOSS|>: 2<eom>\n",
}
SAME: dict[str, dict[str, Any]] = {
    "openai": {"messages": [said("user", "1+1?"), said("assistant", "2")]},
    "minimind": {"conversations": [said("user", "1+1?"), said("assistant", "2")]},
    "sharegpt": {"conversations": [turn("human", "1+1?"), turn("gpt", "2")]},
    "alpaca": {"instruction": "1+1?", "input": "", "output": "2"},
    "prompt-completion": {"prompt": "1+1?", "completion": "2"},
    "prompt-completion messages": {"prompt": [said("user", "1+1?")], "completion": [said("assistant", "2")]},
    "prompt-response": {"prompt": "1+1?", "response": "2", "history": []},
    "question-answer": {"question": "1+1?", "answer": "2"},
    "content-summary": {"content": "1+1?", "summary": "2"},
    "instruct-glm": {"context": "Instruction: 1+1?\nAnswer: ", "target": "2"},
    "med-chatglm": {"context": "问题：1+1?\n回答: ", "target": "2"},
    "chatglm text": {"text": "[Round 0]\n问：1+1?\n答：2"},
    "moss": {"conversation_id": 1, "meta_instruction": "", "num_turns": 1, "chat": {"turn_1": MOSS_TURN}},
    "moss text": {"text": "".join(MOSS_TURN.values())},
    "preference": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "preference messages": {
        "prompt": [said("user", "1+1?")],
        "chosen": [said("assistant", "2")],
        "rejected": [said("assistant", "3")],
    },
    "preference implicit": {"chosen": [said("user", "1+1?"), said("assistant", "2")], "rejected": []},
    "preference sharegpt": {"conversations": [turn("human", "1+1?")], "chosen": turn("gpt", "2"), "rejected": "3"},
    "preference hh": {"chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"},
    "preference deepspeed": {"prompt": "Human: 1+1?\n\nAssistant:", "chosen": "2", "rejected": "3"},
    "preference alpaca": {"instruction": "1+1?", "input": "", "chosen": "2", "rejected": "3"},
    "ranking": {"instruction": "1+1?", "input": "", "output": ["2", "3"]},
}
WITH_HISTORY: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "1+1?", "output": "2", "system": "Be brief.", "history": [["Hi", "Hello"]]},
    "chatglm": {"prompt": "1+1?", "response": "2", "system": "Be brief.", "history": [["Hi", "Hello"]]},
    "chatglm rounds": {
        "system": "Be brief.",
        "prompt": "[Round 0]\n问：Hi\n答：Hello\n[Round 1]\n问：1+1?\n答：",
        "response": "2",
    },
    "chatglm2 rounds": {
        "system": "Be brief.",
        "prompt": "[Round 1]\n\n问：Hi\n\n答：Hello\n\n[Round 2]\n\n问：1+1?\n\n答：",
        "response": "2",
    },
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [turn("human", "Hi"), turn("gpt", "Hello"), turn("human", "1+1?"), turn("gpt", "2")],
    },
    "moss": {
        "meta_instruction": "Be brief.\n",
        "chat": {
            "turn_1": MOSS_TURN | {"Human": "<|Human|>: Hi<eoh>\n", "MOSS": "<|MOSS|>: Hello<eom>\n"},
            "turn_2": MOSS_TURN,
        },
    },
}


def read(tmp_path: Path, *rows: Any, **options: Any) -> list[tuple[Message, ...]]:
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return [conversation.messages for conversation in read_conversations(file, **options)]


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_messages(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, SAME[name]) == [(U, A)]


@pytest.mark.parametrize("name", WITH_HISTORY)
def test_history_and_system_are_kept(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, WITH_HISTORY[name]) == [(S, U0, A0, U, A)]


def test_input_and_passages_belong_to_the_question(tmp_path: Path) -> None:
    assert read(tmp_path, {"instruction": "Translate", "input": "猫", "output": "cat"})[0][0].content == "Translate\n猫"
    asked = read(tmp_path, {"context": "A cat sat.", "question": "Who?", "answer": "A cat."})[0][0]
    assert asked.content == "A cat sat.\n\nWho?"
    dolly = {"instruction": "Who?", "context": "A cat sat.", "response": "A cat.", "category": "closed_qa"}
    assert read(tmp_path, dolly)[0][0].content == "A cat sat.\n\nWho?"


def test_markers_inside_a_prompt_are_text_and_a_whole_dialogue_is_one(tmp_path: Path) -> None:
    for text in ("Go on.\n\nHuman: Who are you?", "Explain:\n\nAssistant: started\nAssistant: stopped"):
        assert read(tmp_path, {"prompt": text, "completion": "Yes."})[0][0].content == text
    belle = {
        "instruction": "Human:你好？\nAssistant:你好！\nHuman:天空为什么是蓝色的？\nAssistant:",
        "input": "",
        "output": "瑞利散射。",
    }
    said = [("user", "你好？"), ("assistant", "你好！"), ("user", "天空为什么是蓝色的？"), ("assistant", "瑞利散射。")]
    assert [(message.role, message.content) for message in read(tmp_path, belle)[0]] == said


def test_a_weight_counts_for_conversations_too_and_one_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    read(tmp_path, *({"question": f"{n}?", "answer": f"{n}."} for n in range(6)))
    counts = [len(list(read_conversations(f"{tmp_path / 'chats.jsonl'}={weight}"))) for weight in ("0.5", "1", "2")]
    assert counts == [3, 6, 12]
    with pytest.raises(UsageError, match="weight"):
        list(read_conversations(f"{tmp_path / 'chats.jsonl'}=-7"))


def test_a_file_that_was_cut_short_gives_all_that_is_there(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"question": f"{n}?", "answer": f"{n}."}) + "\n" for n in range(500))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-8])
    report = ReadReport()
    assert len(list(read_conversations(tmp_path / "cut.jsonl.gz", True, report))) == 500 and report.skipped == 1


def test_a_turn_of_moss_that_is_not_there_and_an_empty_system_text_are_no_turns(tmp_path: Path) -> None:
    moss = {"chat": {"turn_1": {"Human": "<|Human|>: Hi<eoh>\n", "MOSS": "<|MOSS|>: Hello<eom>\n"}, "turn_2": None}}
    assert read(tmp_path, moss) == [(U0, A0)]
    empty = {"tools": "[1]", "messages": [{"role": "system", "content": ""}, U.to_dict(), A.to_dict()]}
    assert [message.role for message in read(tmp_path, empty)[0]] == ["system", "user", "assistant"]


def test_tools_are_told_and_their_calls_and_results_are_kept(tmp_path: Path) -> None:
    call = '{"name": "add", "arguments": {"a": 1}}'
    row = {
        "conversations": [
            turn("human", "1+1?"),
            turn("function_call", call),
            turn("observation", "2"),
            turn("gpt", "2"),
        ],
        "tools": '[{"name": "add"}]',
    }
    system, user, asked, result, answer = read(tmp_path, row)[0]
    assert system == Message("system", 'Tools:\n[{"name": "add"}]') and (user, answer) == (U, A)
    assert asked.tool_calls == (ToolCall("add", '{"a": 1}', "call_1_0"),) and result == Message("tool", "2")


def test_moss_thoughts_commands_and_results_become_parts(tmp_path: Path) -> None:
    tools = {
        "Inner Thoughts": "<|Inner Thoughts|>: A sum.<eot>\n",
        "Commands": '<|Commands|>: Calculate("1+1"), Search("say \\"two\\"")<eoc>\n',
        "Tool Responses": '<|Results|>:\nCalculate("1+1") =>\n2\n<eor>\n',
    }
    strange = {"Commands": "<|Commands|>: Calculate(1+1<eoc>\n", "Tool Responses": "<|Results|>: ?<eor>\n"}
    (first, second) = read(tmp_path, {"chat": {"turn_1": MOSS_TURN | tools}}, {"chat": {"turn_1": MOSS_TURN | strange}})
    user, asked, result, answer = first
    assert (user, answer) == (U, A) and asked.thought == "A sum." and asked.content == ""
    assert [(c.name, c.arguments) for c in asked.tool_calls] == [
        ("Calculate", '{"expression": "1+1"}'),
        ("Search", '{"query": "say \\"two\\""}'),
    ]
    assert result.content == 'Calculate("1+1") =>\n2' and result.role == "tool"
    assert second[1] == Message("assistant", "Calculate(1+1")  # no call that can be read: kept as text


def test_answers_marked_bad_are_not_trained(tmp_path: Path) -> None:
    good, bad = read(tmp_path, SAME["openai"] | {"label": True}, SAME["openai"] | {"label": False})
    assert good[1].train and not bad[1].train


def test_a_row_of_parquet_that_is_no_utf8_is_named_and_ends_no_file(tmp_path: Path) -> None:
    """Of conversations as of texts; what pyarrow raises for it is no error of the file's."""
    bad = pa.array([b"1+1?", b"\xff\xfe", b"1+1?"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": bad, "answer": ["2", "2", "2"]}), tmp_path / "a.parquet")
    report = ReadReport()
    found = list(read_conversations(tmp_path, skip_bad=True, report=report))
    assert [c.messages for c in found] == [(U, A)] * 2
    assert report.skipped == 1 and "a.parquet, row 2" in report.reasons[0] and "invalid UTF-8" in report.reasons[0]


def test_json_parquet_gzip_and_rounds_of_text_are_read(tmp_path: Path) -> None:
    rows = [SAME["openai"], SAME["alpaca"]]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(SAME["moss"]).encode()))
    pq.write_table(pa.Table.from_pylist([SAME["openai"]]), tmp_path / "c.parquet")
    packed = gzip.compress((tmp_path / "c.parquet").read_bytes())
    (tmp_path / "c.parquet.gz").write_bytes(packed)
    (tmp_path / "d.txt").write_text(
        "[Round 0]\n问：Hi\n答：Hello\n[Round 1]\n问：1+1?\n答：2\n\n[Round 0]\n问：1+1?\n答：2\n"
    )
    found = list(read_conversations(tmp_path))
    assert [c.messages for c in found] == [(U, A)] * 5 + [(U0, A0, U, A), (U, A)]
    assert [c.id for c in found[:3]] == [f"{tmp_path}/a.json:1", f"{tmp_path}/a.json:2", "1"]
    assert found[5].id == f"{tmp_path}/d.txt:1" and found[0].source == f"{tmp_path}/a.json"


BAD = {
    "unknown": ({"body": "x"}, "no known conversation format; the row has: body", ""),
    "no answer": ({"instruction": "x"}, "no answer", "field output or response"),
    "role": ({"messages": [said("robot", "x")]}, "role 'robot'", "field messages[0]"),
    "content": ({"messages": [{"role": "user", "content": 3}]}, "not text", "field messages[0]"),
    "list": ({"messages": "x"}, "not a list", "field messages"),
    "speaker": ({"conversations": [turn("human", "x"), turn("alien", "y")]}, "'alien'", "field conversations[1].from"),
    "calls": ({"messages": [said("user", "x") | {"tool_calls": 5}]}, "tool_calls is int", "field messages[0]"),
    "call id": ({"messages": [said("tool", "x") | {"tool_call_id": {}}]}, "tool_call_id is dict", "field messages[0]"),
    "value": ({"conversations": [{"from": "gpt", "value": 3}]}, "no text", "field conversations[0].value"),
    "call": ({"conversations": [turn("function_call", "{")]}, "not JSON", "field conversations[0].value"),
    "history": ({"prompt": "x", "response": "y", "history": [["a"]]}, "[question, answer]", "field history[0]"),
    "turn": ({"chat": {"turn_1": {"Robot": "x"}}}, "no 'Human'", "field chat.turn_1"),
    "round": ({"text": "[Round 0]\n问：no answer"}, "round 0", "field text"),
    "chosen": ({"chosen": "just text", "rejected": "x"}, "no prompt", "field chosen"),
    "type": ({"instruction": 3, "output": "x"}, "not a list", "field instruction"),
    "empty": ({"messages": []}, "no messages", ""),
    "no object": (["x"], "no JSON object", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_row_is_an_error_with_file_row_and_field_or_is_counted(tmp_path: Path, name: str) -> None:
    row, what, field = BAD[name]
    with pytest.raises(LiuliError) as caught:
        read(tmp_path, SAME["openai"], row)
    assert what in caught.value.what
    assert str(caught.value.where) == f"{tmp_path}/chats.jsonl, row 2" + (f", {field}" if field else "")
    report = ReadReport()
    assert read(tmp_path, SAME["openai"], row, skip_bad=True, report=report) == [(U, A)]
    assert report.skipped == 1 and what in report.reasons[0]
    with pytest.raises(LiuliError, match="no conversation found"):
        read(tmp_path, row, skip_bad=True)
