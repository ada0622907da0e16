"""What the model is asked so that people can judge its answers.

In: a file of conversations or of lines, or a run folder. Out: prompts, each ending with a user's message, dealt so that
all are judged equally often. The curriculum's held-out questions are never among them: an exam is not for practice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from liuli.assistant.judgements import digest_of
from liuli.errors import LiuliError
from liuli.text.chat import Message
from liuli.text.formats import read_conversations
from liuli.text.sources import read_lines

Prompt = tuple[Message, ...]

BUILT_IN = (
    ("Hello! Who are you?", "你好！你是谁？"),
    ("What is the capital of France?", "法国的首都是哪里？"),
    ("What is 12 times 7? Explain how you got there.", "12乘以7等于多少？请说明怎么算。"),
    ("Please tell me a story about a rabbit.", "讲一个兔子的故事。"),
    ("Why is the sky blue?", "天空为什么是蓝色的？"),
    ("Write two sentences about the sea.", "用两句话写一写大海。"),
    ("What should I eat for breakfast?", "早饭吃什么好？"),
    ("How do I make a friend?", "怎样交朋友？"),
    ("Please explain what a computer is to a child.", "请给小朋友讲讲什么是电脑。"),
    ("Write a short letter to my grandmother.", "给奶奶写一封短信。"),
)


def read_prompts(file: Path | None, run: Path | None) -> list[Prompt]:
    """The prompts of `file`; without one those of the run's classroom, asked as it was trained; else a few built in.

    file: conversations in any known format (an answer at the end is cut off), or .txt with one prompt a line.
    Raises LiuliError where it holds none.
    """
    if file is not None:
        plain = Path(file).suffix == ".txt"
        return _unique(_lines(Path(file)) if plain else _conversations(Path(file)), str(file))
    questions = run / "curriculum" / "eval.jsonl" if run else None
    if questions is not None and questions.is_file():
        return _unique(_conversations(questions, among=".train."), str(questions))
    return [(Message("user", text),) for pair in BUILT_IN for text in pair]


def _lines(file: Path) -> list[Prompt]:
    prompts: list[Prompt] = []
    for _, line in read_lines(file):
        if isinstance(line, LiuliError):
            raise line
        if line.strip():
            prompts.append((Message("user", line.strip()),))
    return prompts


def _conversations(file: Path, among: str = "") -> list[Prompt]:
    prompts = []
    for conversation in read_conversations(file):
        asked = [number for number, message in enumerate(conversation.messages) if message.role == "user"]
        if asked and among in conversation.id:
            prompts.append(conversation.messages[: asked[-1] + 1])
    return prompts


def _unique(prompts: Sequence[Prompt], where: str) -> list[Prompt]:
    if not prompts:
        raise LiuliError("No prompt was found.", where, "give a file with questions")
    return list({digest_of(prompt): prompt for prompt in prompts}.values())


class Prompts:
    """Deals prompts: mixed, the ones judged least often first."""

    def __init__(self, prompts: Sequence[Prompt], seed: int = 0) -> None:
        self._prompts = {digest_of(prompt): prompt for prompt in random.Random(seed).sample(prompts, len(prompts))}
        self._shown: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._prompts)

    def next(self, judged: Mapping[str, int]) -> Prompt:
        """The next one. judged: how often each was judged, by digest; what was dealt here counts as judged."""
        digest = min(self._prompts, key=lambda each: max(judged.get(each, 0), self._shown[each]))
        self._shown[digest] += 1
        return self._prompts[digest]

    def done(self, judged: Mapping[str, int]) -> int:
        """How many of them were judged at least once."""
        return sum(1 for each in self._prompts if judged.get(each, 0))
