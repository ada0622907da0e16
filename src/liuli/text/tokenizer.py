"""Text to token ids and back: byte-level BPE with ten control tokens, in the files every other tool reads.

In: any string. Out: integers below `vocab_size`. Every byte has a token of its own, so no text is unencodable; a
control token's name inside a text ("<|end|>") is encoded as the characters it is written with, never as the control
token, so nothing a user types can end a turn. Knows nothing of conversations: see `chat.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from liuli.errors import DamagedError, LiuliError, UsageError
from liuli.files import write_file
from liuli.text.template import CHAT_TEMPLATE

CONTROLS = ("bos", "system", "user", "assistant", "tool", "end", "think", "/think", "call", "pad")
SPECIALS = tuple(f"<|{name}|>" for name in CONTROLS) + tuple(f"<|reserved_{i}|>" for i in range(6))
SMALLEST = len(SPECIALS) + 256
"""The smallest vocabulary: the special tokens and the 256 bytes."""

_FIX = "use a copy of this folder, or make the tokenizer again (liuli tokenizer)"

TRAINING_CHARACTERS = 5_000_000
"""How much text the merges are learned from, about five seconds; twice as much gives 0.5% more bytes per token."""


def split_pattern(digits: int = 2) -> str:
    """The regular expression that cuts text before any merge is applied; a token never crosses a cut.

    GPT-4's pattern (OpenAI's tiktoken, `cl100k_base`) with three changes. Digits come in groups of one or two (three
    spend a thousand entries of a small vocabulary on numbers). Chinese has no spaces, so a run of letters would be a
    whole clause: Han characters are a class of their own. Combining marks belong to letters, as Indic scripts need.

    digits: the longest group of digits, 1 or 2.
    """
    return "|".join(
        (
            r"\p{Han}{1,8}",
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^\p{Han}]]+",
            rf"\p{{N}}{{1,{digits}}}",
            r" ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    )


class Tokenizer:
    """A trained vocabulary. Make one with `Tokenizer.train` or `Tokenizer.load`.

    Ids: 0 to 15 the special tokens in the order of `SPECIALS`, then the 256 bytes, then merges by frequency.
    `.bos .system .user .assistant .tool .end .think .end_think .call .pad` are the control ids; `.stops` are those at
    which generation ends; `.bytes_per_id` is int64 (V,), 0 for special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, chat_template: str = CHAT_TEMPLATE) -> None:
        self.backend = backend
        self.backend.encode_special_tokens = True  # names of special tokens in a text are text
        self.backend.no_truncation()  # transformers keeps those of its last call in the file
        self.backend.no_padding()
        self.chat_template = chat_template
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        ids = {name: self.backend.token_to_id(name) for name in SPECIALS}
        if list(ids.values()) != list(range(len(SPECIALS))):
            raise LiuliError(
                "this tokenizer lacks Liuli's control tokens (<|bos|>, <|user|>, … as ids 0 to 15)",
                fix="use a tokenizer made by `liuli tokenizer`",
            )
        self.bos, self.system, self.user, self.assistant, self.tool = range(5)
        self.end, self.think, self.end_think, self.call, self.pad = range(5, 10)
        self.stops = (self.end, self.bos)
        self._bytes = self._table()
        self.bytes_per_id = np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    def _table(self) -> list[bytes]:
        """The bytes each id stands for; empty for special tokens."""
        byte_of = byte_alphabet()
        try:
            pieces = [self.backend.id_to_token(i) or "" for i in range(len(SPECIALS), self.vocab_size)]
            return [b""] * len(SPECIALS) + [bytes(byte_of[c] for c in piece) for piece in pieces]
        except KeyError as error:
            raise LiuliError(f"this tokenizer is not byte-level: a token holds {error.args[0]!r}") from error

    # --- making one ---------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, digits: int = 2) -> Tokenizer:
        """Learn merges from a sample taken evenly from all texts; the same texts give the same vocabulary.

        vocab_size: at least 272. Text that offers fewer merges than asked gives a smaller vocabulary.
        digits: the longest group of digits in one token, 1 or 2.
        """
        if vocab_size < SMALLEST:
            raise UsageError(
                f"a vocabulary of {vocab_size} is too small", fix=f"at least {SMALLEST}: special tokens and bytes"
            )
        if digits not in (1, 2):
            raise UsageError(f"digits come in groups of up to 1 or 2, not {digits}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split_pattern(digits)), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIALS],
            initial_alphabet=sorted(byte_alphabet()),
            max_token_length=24,  # bytes; longer ones are boilerplate
            show_progress=False,
        )
        sample = spread_sample(texts, TRAINING_CHARACTERS)
        if not any(text.strip() for text in sample):
            raise LiuliError("there is no text to learn a vocabulary from", fix="give a source that holds text")
        backend.train_from_iterator(sample, trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a folder with `tokenizer.json` (a model folder, say), or that file itself."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise LiuliError("no tokenizer here", file, "give a folder that holds tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise DamagedError(f"the tokenizer cannot be read: {error}", file, _FIX) from error
        template = _template(file.parent)
        try:
            return cls(backend, template)
        except LiuliError as error:
            raise LiuliError(error.what, file, error.fix) from error

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template) as transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_file(folder / "tokenizer_config.json", json.dumps(self.config(), ensure_ascii=False, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` holds."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|end|>",
            "pad_token": "<|pad|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }

    # --- text to ids and back -----------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text, never a special token; half a surrogate pair becomes U+FFFD, for it has no bytes."""
        ids: list[int] = self.backend.encode(whole(text), add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores."""
        texts = [whole(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], specials: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; special tokens are written by name, or left out."""
        pieces = (self._piece(int(i), specials) for i in ids)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _piece(self, i: int, specials: bool) -> bytes:
        return SPECIALS[i].encode() if specials and 0 <= i < len(SPECIALS) else self.bytes_of(i)

    def bytes_of(self, i: int) -> bytes:
        """The bytes a token stands for; none for a special token."""
        if not 0 <= i < self.vocab_size:
            raise LiuliError(f"token {i} is outside the vocabulary of {self.vocab_size}", fix="does it fit the model?")
        return self._bytes[i]

    @property
    def special_ids(self) -> dict[str, Any]:
        """The ids that other tools look for, under Hugging Face's names."""
        return {"bos_token_id": self.bos, "eos_token_id": sorted(self.stops), "pad_token_id": self.pad}

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size})"


def whole(text: str) -> str:
    """The text with each half of a surrogate pair replaced by U+FFFD."""
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary file (GPT-2's table).

    Printable Latin-1 characters stand for themselves; the other 68 bytes take the code points from 256 upward.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(rest)}


def spread_sample(texts: Iterable[str], characters: int) -> list[str]:
    """About that many characters of texts, taken evenly over all of them."""
    sample = Sample(characters)
    for text in texts:
        sample.add(text)
    return sample.kept


class Sample:
    """Takes every piece of text, then every second, fourth, …: when twice too much is held, half is let go.

    One pass, deterministic. characters: about how many are kept, at most twice as many. A long text counts as many
    pieces, so that one book is not the whole sample.
    """

    def __init__(self, characters: int) -> None:
        self.kept: list[str] = []
        self._characters, self._piece = characters, max(characters // 100, 1000)
        self._held = self._seen = 0
        self._stride = 1

    def add(self, text: str) -> None:
        for start in range(0, len(text), self._piece):
            self._add(whole(text[start : start + self._piece]))

    def _add(self, piece: str) -> None:
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        self.kept.append(piece)
        self._held += len(piece)
        while self._held > 2 * self._characters and len(self.kept) > 1:
            self.kept, self._stride = self.kept[::2], self._stride * 2
            self._held = sum(map(len, self.kept))


def _template(folder: Path) -> str:
    """The chat template beside a tokenizer: a file of its own, as transformers 5 has it, or among the settings, where
    of several the one named "default" is taken."""
    file, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if file.is_file():
            return file.read_text("utf-8")
        found = json.loads(settings.read_text("utf-8")).get("chat_template") if settings.is_file() else None
        if isinstance(found, list):
            found = next(each["template"] for each in found if each["name"] == "default")
        return "" + (found or CHAT_TEMPLATE)
    except (ValueError, AttributeError, LookupError, TypeError, StopIteration) as error:
        raise DamagedError(f"the tokenizer's settings cannot be read: {error}", settings, _FIX) from error
