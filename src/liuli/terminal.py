"""Talking to a model in the terminal: `liuli chat`.

In: lines that a person types, or a pipe. Out: the answer as it is written, and on request what else could have stood
there. It knows voices, and nothing of models, files or HTTP.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from math import exp
from typing import Any

from rich.console import Console
from rich.text import Text

from liuli.assistant.voices import Voice
from liuli.engine import TOOLS, Sampling, Token
from liuli.errors import LiuliError
from liuli.text import Message

PROMPT, MORE, BLOCK = "› ", "… ", '"""'

COMMANDS = {
    "/help": ("this list", "显示本说明"),
    "/new": ("begin a new conversation", "开始新的对话"),
    "/system TEXT": ("tell the model who it is, and begin anew", "设定系统提示并重新开始"),
    "/temperature 0.7": ("0: always the likeliest word; higher: more surprise", "0 总选最可能的词；越高越随机"),
    "/why [WORD]": ("what else could have stood in the last answer", "上一个回答的每个词原本还可能是什么"),
    "/quit": ("leave, as Ctrl-D does", "离开，同 Ctrl-D"),
}
NOTES = (
    (
        'A line that ends in \\ goes on; """ begins and ends a block.',
        '行末加 \\ 可续行；用 """ 开始和结束一段多行文字。',
    ),
    ("Ctrl-C stops the answer, Ctrl-D leaves.", "Ctrl-C 停止回答，Ctrl-D 离开。"),
)
UNSEEN = dict.fromkeys([*range(9), *range(11, 32), 127])  # a model's control characters are not for the terminal


class Leave(Exception):
    """The person is done."""


@dataclass
class Chat:
    """One person, one voice. read: the next line, after a prompt; EOFError at the end, KeyboardInterrupt at Ctrl-C."""

    voice: Voice
    sampling: Sampling
    read: Callable[[str], str]
    console: Console
    system: str = ""
    as_json: bool = False
    messages: list[Message] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)  # of the last answer
    asked: int = 0

    def run(self) -> None:
        """Read and answer until the person leaves or the pipe ends."""
        while True:
            try:
                text = self.next_message().strip()
                if text.startswith("/"):
                    self.command(*_split(text))
                elif text:
                    self.answer(text)
            except (EOFError, Leave):
                return
            except KeyboardInterrupt:
                self.say("\n(Ctrl-D leaves · Ctrl-D 离开)", "dim")
            except LiuliError as error:
                self.say(str(error), "red")

    # --- reading ------------------------------------------------------------------------------------------------

    def next_message(self) -> str:
        """One message: a line, lines joined by backslashes, or a block between triple quotes."""
        line = self.read(PROMPT)
        if line.lstrip().startswith(BLOCK):
            return "\n".join(self._block(line.lstrip()[len(BLOCK) :]))
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            try:
                line = self.read(MORE)
            except EOFError:
                line = ""
        return "\n".join([*lines, line])

    def _block(self, line: str) -> Iterator[str]:
        """The lines up to the closing quotes; the end of a pipe closes a block too."""
        while not line.rstrip().endswith(BLOCK):
            yield line
            try:
                line = self.read(MORE)
            except EOFError:
                return
        yield line.rstrip()[: -len(BLOCK)]

    # --- answering ----------------------------------------------------------------------------------------------

    def answer(self, text: str) -> None:
        """Ask, show the answer as it comes, remember both; Ctrl-C keeps what was written so far."""
        question = Message("user", text)
        system = [Message("system", self.system)] if self.system else []
        seed = None if self.sampling.seed is None else self.sampling.seed + self.asked
        self.asked += 1
        self.tokens, produced, shown = [], list[Message](), ""
        try:
            history = [*system, *self.messages, question]
            with closing(self.voice.reply(history, replace(self.sampling, seed=seed), list(TOOLS))) as parts:
                for part in parts:
                    if isinstance(part, Message):
                        produced.append(part)
                        self._show_step(part)
                        shown = "" if part.role == "assistant" else shown  # its text is in that message
                    elif isinstance(part, Token):
                        self.tokens.append(part)
                        shown += part.text
                        self._write(part.text)
        except KeyboardInterrupt:
            self._write(" ⏹")
            self._remember(question, produced, shown, "cancel")
        else:
            self._remember(question, produced, shown, self.tokens[-1].stopped_by or "end")

    def _remember(self, question: Message, produced: list[Message], shown: str, stopped_by: str) -> None:
        if not self.as_json:
            self.console.print()
        if stopped_by in ("length", "error"):
            why = {"length": "(cut: too long · 过长，已截断)", "error": "(the model gave no number · 模型输出了 NaN)"}
            self.say(why[stopped_by], "dim")
        new = [*produced, Message("assistant", shown)]
        if shown or produced or stopped_by != "cancel":
            self.messages += [question, *new]
        if self.as_json:
            told: dict[str, Any] = {"answer": shown, "stopped_by": stopped_by, "messages": [m.to_dict() for m in new]}
            self.console.print(Text(json.dumps(told, ensure_ascii=False)), soft_wrap=True)

    def _show_step(self, message: Message) -> None:
        """A tool call or its result, between the lines."""
        for call in message.tool_calls:
            self.say(f"⚙ {call.name} {call.arguments}", "dim")
        if message.role == "tool":
            self.say(f"  → {message.content}", "dim")

    def _write(self, text: str) -> None:
        if text and not self.as_json:
            self.console.print(Text(text.translate(UNSEEN)), end="", soft_wrap=True)
            self.console.file.flush()

    def say(self, text: str, style: str = "") -> None:
        """A line that is not the model's; with --json such lines go to standard error."""
        if self.as_json:
            print(text, file=sys.stderr)
        else:
            self.console.print(Text(text, style=style), soft_wrap=True)

    # --- commands -----------------------------------------------------------------------------------------------

    def command(self, name: str, rest: str) -> None:
        """Carry out a line that begins with a slash."""
        match name:
            case "/help":
                self.say(help_text())
            case "/new":
                self.messages, self.tokens = [], []
                self.say("A new conversation. · 新的对话。", "dim")
            case "/system":
                self.set_system(rest)
            case "/temperature":
                self.set_temperature(rest)
            case "/why":
                self.why(rest)
            case "/quit" | "/exit":
                raise Leave
            case _:
                raise LiuliError(f"There is no command {name} · 没有这个命令", fix="/help")

    def set_system(self, text: str) -> None:
        """Set the system message and begin anew; without a text, show it."""
        if text:
            self.system, self.messages, self.tokens = text, [], []
        self.say(f"system: {self.system or '—'}", "dim")

    def set_temperature(self, text: str) -> None:
        """Set the temperature; without a number, show it."""
        if text:
            try:
                self.sampling = replace(self.sampling, temperature=float(text))
            except ValueError as error:
                raise LiuliError(f"{text!r} is no temperature · 不是有效的温度", fix="/temperature 0.7") from error
        self.say(f"temperature: {self.sampling.temperature:g}", "dim")

    def why(self, word: str) -> None:
        """For each token of the last answer (of those words only that contain `word`): its share and the others'."""
        pieces = [(self._name(token), token) for token in self.tokens]
        chosen = [token for group in _words(pieces) if word in "".join(name for name, _ in group) for _, token in group]
        if not chosen:
            raise LiuliError(
                "There is no such word in the last answer · 上一个回答里没有这个词",
                fix="ask first, then /why · 先提问，再用 /why",
            )
        for token in chosen:
            own = f"{_visible(self._name(token)):>14} {_share(token.logprob):>6}"
            others = [f"{_visible(o.text)} {_share(o.logprob)}" for o in token.alternatives if o.id != token.id]
            self.say(f"{own}  │ " + " · ".join(others))

    def _name(self, token: Token) -> str:
        """A token as it is shown in a list: as among the alternatives, else its bytes, else its text."""
        named = next((other.text for other in token.alternatives if other.id == token.id), "")
        return named or self.voice.bytes_of(token.id).decode("utf-8", "replace") or token.text or "⏹"


def _split(text: str) -> tuple[str, str]:
    name, _, rest = text.partition(" ")
    return name, rest.strip()


def _words(pieces: list[tuple[str, Token]]) -> list[list[tuple[str, Token]]]:
    """Tokens grouped into words: a token that begins with a letter or digit goes on with the one before."""
    groups: list[list[tuple[str, Token]]] = []
    for piece in pieces:
        if groups and piece[0][:1].isalnum():
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _share(logprob: float) -> str:
    """A probability as a person reads it."""
    return f"{exp(logprob):.1%}" if logprob > -7 else "<0.1%"


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace(" ", "␣")


def help_text() -> str:
    """The commands in both languages."""
    lines = [f"{name:<18}{english} · {chinese}" for name, (english, chinese) in COMMANDS.items()]
    return "\n".join([*lines, *(f"{english} {chinese}" for english, chinese in NOTES)])


def chat_here(voice: Voice, sampling: Sampling, system: str, name: str, as_json: bool) -> None:
    """Talk on this terminal, or with whatever is at the other ends of the pipes."""
    typed = sys.stdin.isatty()
    for stream in (sys.stdin, sys.stdout):  # a broken byte in a pipe or a plain C locale must not end the chat
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() its line editing and history)
    console = Console(highlight=False, markup=False, emoji=False)
    chat = Chat(voice, sampling, input if typed else lambda prompt: input(), console, system, as_json)
    if typed and not as_json:
        chat.say(f"{name} · /help · Ctrl-D", "dim")
    try:
        chat.run()
    except BrokenPipeError:  # whoever read us has left; Python would complain once more while it closes the stream
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
