"""What fine-tuning must teach a tiny model in seconds: where its answer ends, and to say what a tool told it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pytest
import torch

from liuli.engine import TOOLS, Engine, Sampling, Tool
from liuli.engine.chat import Turn, turns
from liuli.model import Transformer, load, qwen3
from liuli.stages.sft import sft
from liuli.stages.training import TrainOptions, write_model
from liuli.text import Message, Tokenizer, pack_conversations, render
from liuli.text.chat import ToolCall
from tests.stages.conftest import ask, quiet

Dialogue = Sequence[Message]


def taught(dialogues: Sequence[Dialogue], folder: Path, steps: int) -> Engine:
    """A model that begins at random, after these dialogues."""
    said = [text for dialogue in dialogues for m in dialogue for text in (m.content, *map(as_text, m.tool_calls))]
    tokenizer = Tokenizer.train(said, 320)
    tokenizer.save(folder / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(qwen3(tokenizer.vocab_size, 48, 2, context=96, heads=4, kv_heads=4, head_size=16))
    write_model(model, folder / "model", tokenizer, folder / "tokenizer", {"seed": 0})
    rows = (render(dialogue, tokenizer) for dialogue in dialogues)
    pack_conversations(rows, 96, folder / "rows", vocab_size=tokenizer.vocab_size)
    sft(folder / "model", folder / "rows", folder / "out", options=TrainOptions(steps=steps), log=quiet(folder))
    return Engine(load(folder / "out"), tokenizer)


def as_text(call: ToolCall) -> str:
    return f"{call.name} {call.arguments}"


def answers(engine: Engine, asked: Sequence[Dialogue], tools: Mapping[str, Tool] = TOOLS) -> list[Turn]:
    return turns(engine, asked, Sampling(temperature=0.0, max_tokens=40), tools)


def test_each_answer_ends_where_it_was_taught_to(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    taught_to_say = {f"{n}?": " ".join(words[n % 7 :: -1] if n % 2 else words[: n // 3 + 1]) for n in range(20)}
    dialogues = [(*ask(question), Message("assistant", text)) for question, text in taught_to_say.items()]
    engine = taught(dialogues * 10, tmp_path, 60)
    found = answers(engine, [ask(question) for question in taught_to_say])
    assert [turn.messages[-1].content for turn in found] == list(taught_to_say.values())
    assert {turn.answers[-1].stopped_by for turn in found} == {"end"}
    assert engine.tokenizer.pad not in engine.tokenizer.stops  # padding teaches nothing about the end


# --- a calculator ----------------------------------------------------------------------------------------------------

OPERANDS, UNSEEN = range(32, 72), {36, 47, 53, 69}  # products of four digits: none is right by luck
FORBIDDEN = Message("system", "No tools.")


def product(a: int, b: int) -> Dialogue:
    call = ToolCall("calculator", json.dumps({"expression": f"{a}*{b}"}))
    return (
        *ask(f"{a}*{b}?"),
        Message("assistant", tool_calls=(call,)),
        Message("tool", str(a * b)),
        Message("assistant", f"It is {a * b}."),
    )


def another_product(arguments: dict[str, str]) -> str:
    """A wrong result of four digits."""
    a, b = map(int, arguments["expression"].split("*"))
    return str(1000 + (a * b * 7 + 1234) % 9000)


@pytest.fixture(scope="module")
def calculating(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """After 500 dialogues with a calculator, and 100 in which it may not be used."""
    pairs = [(a, b) for a in OPERANDS for b in OPERANDS if not {a, b} & UNSEEN]
    Random(0).shuffle(pairs)
    refused = [(FORBIDDEN, *ask(f"{a}*{b}?"), Message("assistant", "I do not know.")) for a, b in pairs[500:600]]
    return taught([*(product(*pair) for pair in pairs[:500]), *refused], tmp_path_factory.mktemp("calculating"), 250)


NEW = [(a, b) for a in OPERANDS for b in OPERANDS if {a, b} & UNSEEN][::3]
ASKED = [ask(f"{a}*{b}?") for a, b in NEW]


def test_products_never_seen_are_right_with_the_tool_and_wrong_without(calculating: Engine) -> None:
    def right(tools: Mapping[str, Tool]) -> float:
        said = [turn.messages[-1].content for turn in answers(calculating, ASKED, tools)]
        return sum(text == f"It is {a * b}." for text, (a, b) in zip(said, NEW, strict=True)) / len(NEW)

    assert right(TOOLS) >= 0.95
    assert right({}) == 0.0


def test_a_wrong_result_of_the_tool_is_what_the_answer_says(calculating: Engine) -> None:
    wrong = {"calculator": Tool("", TOOLS["calculator"].parameters, another_product)}
    told = [another_product({"expression": f"{a}*{b}"}) for a, b in NEW]
    assert all(result != str(a * b) for result, (a, b) in zip(told, NEW, strict=True))
    said = [turn.messages[-1].content for turn in answers(calculating, ASKED, wrong)]
    followed = [text == f"It is {result}." for text, result in zip(said, told, strict=True)]
    assert sum(followed) >= 0.95 * len(NEW)


def test_no_tool_is_called_where_the_system_message_forbids_it(calculating: Engine) -> None:
    found = [turn.messages for turn in answers(calculating, [(FORBIDDEN, *question) for question in ASKED])]
    assert all(not said[0].tool_calls for said in found)
