"""Streamed text: independent of how tokens are cut, without parts of characters or of stop strings."""

import random

import pytest

from common.errors import RequestError
from edge.text.detokenizer import TextStream

TEXT = "Zürich 東京 🙂🙃 ab abc abcd STOP tail"


def byte(token: int) -> bytes:
    return bytes([token])


def stream(text: str, stop: list[str], source: random.Random) -> tuple[list[str], TextStream]:
    """The text's pieces when its bytes are pushed, cut at random, and the last flush."""
    stream, data, out = TextStream(byte, stop), list(text.encode()), []
    while data:
        size = source.randint(1, 9)
        out.append(stream.push(data[:size]))
        del data[:size]
    return [*out, stream.flush()], stream


@pytest.mark.parametrize("seed", range(50))
def test_without_stop_strings_everything_comes_out_in_whole_characters(seed: int) -> None:
    pieces, end = stream(TEXT, [], random.Random(seed))
    assert "".join(pieces) == TEXT
    assert end.decoded == end.shown == len(TEXT)
    assert not end.stopped
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize("seed", range(200))
def test_text_ends_before_the_stop_string_that_is_complete_first(seed: int) -> None:
    source = random.Random(seed)
    text = "".join(source.choices("abcé", k=60))
    stop = ["".join(source.choices("abcé", k=source.randint(1, 4))) for _ in range(source.randint(1, 3))]
    ends = [(i, -len(s)) for s in stop for i in range(len(text) + 1) if text[:i].endswith(s)]
    expected = text if not ends else text[: sum(min(ends))]
    pieces, end = stream(text, stop, source)
    assert "".join(pieces) == expected
    assert end.stopped == bool(ends)


@pytest.mark.parametrize("seed", range(20))
def test_no_shown_text_is_taken_back(seed: int) -> None:
    pieces, end = stream(TEXT, ["abcd ST"], random.Random(seed))
    assert "".join(pieces) == TEXT.split("abcd ST")[0]
    assert end.stopped


def test_text_is_held_back_only_while_it_may_be_a_stop_string() -> None:
    stream = TextStream(byte, ["\n\n"])
    pieces = [stream.push(list(text)) for text in (b"one\n", b"two", b"\n", b"\n", b"three")]
    assert pieces == ["one", "\ntwo", "", "", ""]
    assert stream.stopped
    assert stream.shown == len("one\ntwo")
    assert stream.decoded == len("one\ntwo\n\n")
    assert stream.flush() == ""


def test_text_held_back_is_shown_at_the_end() -> None:
    stream = TextStream(byte, ["STOP"])
    assert stream.push(list(b"so STO")) == "so "
    assert stream.flush() == "STO"
    assert not stream.stopped


def test_an_incomplete_character_becomes_a_replacement_character() -> None:
    stream = TextStream(byte)
    assert stream.push(list("é".encode()[:1])) == ""
    assert stream.flush() == "\ufffd"


def test_tokens_without_text_change_nothing() -> None:
    stream = TextStream(lambda token: b"" if token == 0 else byte(token))
    assert stream.push([0, 104, 0, 105, 0]) == "hi"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError) as refusal:
        TextStream(byte, [""])
    assert refusal.value.param == "stop"
