"""The loss mask to look at: which tokens of a conversation a model is trained on, in colour.

In: conversations in any known format, and a tokenizer. Out: their text on the terminal, what is trained apart from what
is only read, and how much of all it is. The mask is that of `chat.py`, which training uses.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from liuli.text.chat import ROLES, Conversation, Rendered, render
from liuli.text.commands import _say_skipped, counted
from liuli.text.formats import read_conversations
from liuli.text.sources import ReadReport
from liuli.text.tokenizer import SPECIALS, Tokenizer

READ, TRAINED, CONTROL = "bright_black", "bold green", "magenta"
BRACKETS = "⟦", "⟧"
OPENS = tuple(f"<|{role}|>" for role in ROLES)
# A text's own control characters (a terminal would obey them), as the signs that Unicode has for them.
VISIBLE = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "␡"}


@dataclass(frozen=True)
class Piece:
    """Tokens that go together. control: it is one control token, not text that looks like one."""

    text: str
    trained: bool
    control: bool = False


@dataclass
class MaskCount:
    """What a model learns from conversations. without_target: conversations in which nothing is trained."""

    conversations: int = 0
    without_target: int = 0
    tokens: int = 0
    trained: int = 0

    def add(self, rendered: Rendered) -> None:
        trained = sum(map(bool, rendered.weights))
        self.conversations += 1
        self.without_target += not trained
        self.tokens += len(rendered.tokens)
        self.trained += trained

    def shares(self) -> dict[str, float]:
        """Of all tokens the trained ones, of all conversations those without a target."""
        return {
            "trained_share": round(self.trained / max(self.tokens, 1), 4),
            "without_target_share": round(self.without_target / max(self.conversations, 1), 4),
        }


def pieces(rendered: Rendered, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The whole text of a conversation in order, cut where the mask changes and around every control token."""

    def key(place: int) -> tuple[bool, int | None]:
        control = rendered.tokens[place] < len(SPECIALS)
        return bool(rendered.weights[place]), place if control else None

    for (trained, control), places in itertools.groupby(range(len(rendered.tokens)), key):
        yield Piece(tokenizer.decode(rendered.tokens[place] for place in places), trained, control is not None)


def painted(shown: Iterable[Piece], colour: bool = True) -> Text:
    """The pieces for a terminal, each message on a line of its own; without colour, what is trained is in brackets."""
    text, trained = Text(), False
    for piece in shown:
        if not colour and piece.trained != trained:
            text.append(BRACKETS[trained])
        trained = piece.trained
        if piece.control and piece.text in OPENS:
            text.append("\n")
        text.append(piece.text.translate(VISIBLE), TRAINED if trained else CONTROL if piece.control else READ)
    return text.append("" if colour or not trained else BRACKETS[1])


def mask_here(sources: list[str], tokenizer: Path, n: int = 3, skip_bad: bool = False, as_json_: bool = False) -> None:
    """The command `liuli data mask`: the first n conversations, and the counts over all of them."""
    known, read, count = Tokenizer.load(tokenizer), ReadReport(), MaskCount()
    first: list[tuple[Conversation, Rendered]] = []
    with counted("counting", read) as through:
        for conversation in through(read_conversations(sources, skip_bad, read)):
            rendered = render(conversation, known)
            count.add(rendered)
            if len(first) < n:
                first.append((conversation, rendered))
    if as_json_:
        rows = [{"id": each.id, "tokens": made.tokens, "weights": made.weights} for each, made in first]
        print(
            json.dumps({"first": rows, **asdict(count), **count.shares(), "skipped": read.skipped}, ensure_ascii=False)
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    colour = console.is_terminal and not console.no_color
    for conversation, rendered in first:
        console.print(Text(f"── {conversation.id}", READ))
        console.print(painted(pieces(rendered, known), colour), end="\n\n")
    legend = Text("trained", TRAINED) if colour else Text("trained".join(BRACKETS))
    console.print(legend, Text("read only", READ), Text("control token", CONTROL), sep=" · ")
    print(f"{count.trained:,} of {count.tokens:,} tokens are trained ({count.shares()['trained_share']:.1%}),")
    print(f"in {count.conversations:,} conversations; without anything to train on: {count.without_target:,}", end=" ")
    print(f"({count.shares()['without_target_share']:.1%})")
    _say_skipped(read)
