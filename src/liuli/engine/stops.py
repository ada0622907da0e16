"""Bytes of tokens to text that may be shown: no half character, no half stop string, nothing taken back.

No torch here, and no tokens: bytes in, text out.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Text of one answer as it grows. `stopped` becomes True when a stop string is complete.

    The stop that is complete first ends the text (of two complete at once, the longer one), wherever token borders lie.
    Bytes that are no UTF-8 become U+FFFD, as `bytes.decode(errors="replace")` has it.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, piece: bytes, last: bool = False) -> str:
        """Text that may be shown now that `piece` has come. last: nothing follows, so nothing stays held back."""
        if self.stopped:
            return ""
        text = self._decoder.decode(piece, last)
        if not self.stops:
            return text
        text = self._held + text
        cut = _first_stop(text, self.stops)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = 0 if last else _begun(text, self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop begins that is complete first, the longer one on a tie; None if none is."""
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not found:
        return None
    end, minus_length = min(found)
    return end + minus_length


def _begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop, and not all of it."""
    longest = min(len(text), max(map(len, stops)) - 1)
    for length in range(longest, 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
