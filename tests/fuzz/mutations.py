"""Damage for valid bytes and JSON values: what a fuzzer changes in them."""

from typing import Any

from hypothesis import strategies as st

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, within: int | None = None) -> bytes:
    """`data` with some of its first `within` bytes replaced, inserted, removed or repeated, and perhaps cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(changed), within or len(changed))))
        piece = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x80", b"\x7f\xff"]))
        match draw(st.sampled_from(["replace", "insert", "remove", "repeat"])):
            case "replace":
                changed[at : at + len(piece)] = piece
            case "insert":
                changed[at:at] = piece
            case "remove":
                del changed[at : at + len(piece)]
            case "repeat":
                changed[at:at] = changed[at : at + 16]
    return bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.booleans()) else changed)


@st.composite
def altered(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """`value` with fields that are removed, added, or replaced by any JSON value, at any depth."""
    changed = dict(value)
    for name in draw(st.sets(st.sampled_from(sorted(value)), max_size=3)):
        inner = changed[name]
        if isinstance(inner, dict) and inner and draw(st.booleans()):
            changed[name] = draw(altered(inner))
        elif draw(st.booleans()):
            changed[name] = draw(JSON_VALUES)
        else:
            del changed[name]
    if draw(st.integers(0, 4)) == 0:
        changed[draw(st.text(max_size=8))] = draw(JSON_VALUES)
    return changed
