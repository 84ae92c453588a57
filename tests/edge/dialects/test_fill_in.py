"""The prompt for a text between two others: the order of its parts, what is cut, and what stays the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ContextLengthError
from edge.text import fill_in
from edge.text.fill_in import FillIn, FillInTokens

TOKENS = FillInTokens(prefix=-1, suffix=-2, middle=-3, repository=-4, file=-5)
TEXTS = st.text("abc\n", max_size=300)


def tokenize(text: str) -> list[int]:
    return [ord(character) for character in text]


def spelled(ids: list[int]) -> str:
    names = {-1: "<PRE>", -2: "<SUF>", -3: "<MID>", -4: "<REP>", -5: "<SEP>", -6: "<BOS>"}
    return "".join(names.get(token) or chr(token) for token in ids)


def prompt(wanted: FillIn, tokens: FillInTokens = TOKENS, room: int = 1000) -> str:
    return spelled(fill_in.prompt(wanted, tokens, tokenize, room))


def test_the_parts_have_the_order_of_the_repository_format() -> None:
    wanted = FillIn("before", "after", "begun", [("a.py", "x = 1"), ("b.py", "y = 2")])
    files = "<REP>myproject\n<SEP>a.py\nx = 1<SEP>b.py\ny = 2<SEP>filename\n"
    assert prompt(wanted) == f"{files}<PRE>beforebegun<SUF>after<MID>"
    assert prompt(wanted._replace(with_files=False)) == "<PRE>beforebegun<SUF>after<MID>"


def test_a_model_without_tokens_for_files_gets_them_as_text_and_its_first_token() -> None:
    plain = FillInTokens(-1, -2, -3, begin=-6)
    assert prompt(FillIn("p", "s", files=[("a", "x")]), plain) == "\n\n--- snippet ---\n\nx<BOS><PRE>p<SUF>s<MID>"


@given(TEXTS, TEXTS, st.text("xyz", max_size=30), TEXTS, st.integers(100, 700))
def test_what_is_near_the_gap_stays_and_the_room_is_kept(
    before: str, after: str, begun: str, beside: str, room: int
) -> None:
    text = prompt(FillIn(before, after, begun, [("f", beside)] if beside else []), room=room)
    files, _, rest = text.partition("<PRE>")
    prefix, _, suffix = rest.removesuffix("<MID>").partition("<SUF>")
    assert (before + begun).endswith(prefix) and prefix.endswith(begun)
    assert after.startswith(suffix)
    assert len(fill_in.prompt(FillIn(before, after, begun, [("f", beside)]), TOKENS, tokenize, room)) <= room
    if room > 3 * (len(before) + len(after) + len(begun) + len(beside) + 60):
        assert (prefix, suffix) == (before + begun, after) and beside in files


def test_prompts_begin_alike_while_their_text_grows() -> None:
    files = [("f", "abc " * 100)]
    shorter, longer = (prompt(FillIn("x" * n, "y", files=files), room=300) for n in (5, 60))
    assert shorter.partition("<PRE>")[0] == longer.partition("<PRE>")[0] != ""


def test_no_room_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ContextLengthError) as refusal:
        prompt(FillIn("x", "y", begun="z" * 500), room=200)
    assert refusal.value.param == "prompt"
