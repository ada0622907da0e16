"""The text of a stream does not depend on where tokens begin and end, and nothing shown is ever taken back."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from liuli.engine import TextStream

texts = st.text(alphabet="ab\n琉é🙂", max_size=24)
stop_strings = st.lists(st.text(alphabet="ab琉🙂", min_size=1, max_size=4), max_size=3)


def pieces(content: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes cut at these places, in order; tokens may be empty."""
    places = sorted(min(cut, len(content)) for cut in cuts)
    return [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)]


def up_to_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: character by character, until the text so far ends in a stop (the longest such)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def shown(parts: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(stops)
    return [stream.feed(part, last=number == len(parts) - 1) for number, part in enumerate(parts)], stream.stopped


@settings(max_examples=300, deadline=None)
@given(texts, stop_strings, st.lists(st.integers(0, 80), max_size=20))
@example("aab", ["ab"], [1, 2])
@example("abca", ["abcd", "bc"], [1, 2, 3])
@example("🙂a🙂", ["🙂🙂"], [1, 2, 3, 5, 7])
def test_any_split_into_tokens_gives_the_text_up_to_the_stop(text: str, stops: list[str], cuts: list[int]) -> None:
    parts, stopped = shown(pieces(text.encode(), cuts), stops)
    assert ("".join(parts), stopped) == up_to_stop(text, stops)


@settings(max_examples=300, deadline=None)
@given(texts, stop_strings, st.lists(st.integers(0, 80), max_size=20))
def test_no_half_stop_and_no_half_character_is_shown(text: str, stops: list[str], cuts: list[int]) -> None:
    content = pieces(text.encode(), cuts)
    parts, _ = shown(content, stops)
    for number in range(len(parts)):
        so_far = "".join(parts[:number])
        assert "\ufffd" not in so_far
        if number < len(parts) - 1:  # whatever could still become a stop is held back
            unfinished = [stop[:size] for stop in stops for size in range(1, len(stop))]
            complete = b"".join(content[:number]).decode(errors="ignore")
            if not up_to_stop(complete, stops)[1]:
                longest = max((len(part) for part in unfinished if complete.endswith(part)), default=0)
                assert so_far == complete[: len(complete) - longest]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=24), st.lists(st.integers(0, 30), max_size=12))
@example("琉".encode()[:2], [1])
@example(b"\xf0\x9f\x99", [1, 2])
def test_bytes_that_are_no_text_become_replacement_characters_as_python_has_it(content: bytes, cuts: list[int]) -> None:
    parts, _ = shown(pieces(content, cuts), [])
    assert "".join(parts) == content.decode(errors="replace")


def test_half_a_character_at_the_end_becomes_one_replacement_character() -> None:
    assert shown([b"a", "🙂".encode()[:2], "🙂".encode()[2:3]], ["x"])[0] == ["a", "", "\ufffd"]
