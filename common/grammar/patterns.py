"""Regular expressions of JSON schemas, in the form in which llguidance holds them.

llguidance reads Rust's syntax, which gives a meaning to some things that JSON Schema's (ECMA-262) does not have: they
are refused. Of a set that has all control characters llguidance takes the escapes of `"` and `\\` too, also if the set
excludes these two: so no set keeps NUL.
"""

import re
from collections.abc import Iterable

TOKEN = re.compile(
    r"\\[pP]\{\w+\}|\\x[\da-fA-F]{2}|\\u\w{4}|\\.|\(\?P?<[A-Za-z_]\w*>|\(\?.?|\{\d+(?:,\d*)?\}|\[\^|.", re.DOTALL
)
"""An escaped character or class, the beginning of a group or negated set, a repetition, or a character."""
REPETITIONS = frozenset("*+?")
NUL = frozenset((r"\0", r"\x00", r"\u0000", "\0"))
GROUPS = frozenset(("(?:", "(?=", "(?!", "(?<"))
ONLY_IN_RUST = frozenset((r"\A", r"\z", r"\<", r"\>", r"\a", r"\x", "\\"))
"""A lone backslash is the end of a pattern that ends in one; `\\x` is one without two hexadecimal digits."""
CLASSES = re.compile(r"\\p\{[LNMPSZ]\w*\}")
"""Unicode's classes that have no control character."""


def held(pattern: str) -> str:
    """`pattern` as llguidance should get it; raises ValueError for what it would read otherwise."""
    written, before, in_set = [], "", False
    for token in TOKEN.findall(pattern):
        if token in NUL or token in ONLY_IN_RUST or (token[:2] in (r"\p", r"\P") and not CLASSES.fullmatch(token)):
            raise ValueError(f"{token!r} is not supported")
        if in_set:
            if token in ("[", "[^") or (token == before and token in "&-~") or (token == "]" and before[0] == "["):
                raise ValueError("an empty set, and operators and [ within a set, are not supported")
            in_set = token != "]"
        elif token in ("[", "[^"):
            in_set = True
        elif _repeats(token):
            lazy = _repeats(before) and token == "?"
            if (
                before in ("", "(", "|", "^", "$")
                or before in GROUPS
                or before == "lazy"
                or (_repeats(before) and not lazy)
            ):
                raise ValueError(f"there is nothing to repeat before {token}")
            before = "lazy" if lazy else token
            written.append(token)
            continue
        elif token.startswith("(?") and token not in GROUPS and not token.endswith(">"):
            raise ValueError("flags are not supported")
        written.append(r"[^\x00" if token == "[^" else token)
        before = token
    return "".join(written)


def _repeats(token: str) -> bool:
    return token in REPETITIONS or (token[:1] == "{" and len(token) > 1)


def other_than(names: Iterable[str]) -> str:
    """A pattern that matches every text except `names`, and those with NUL where a name ends or others go on."""
    return f"^(?:{_other_than(list(names))})$"


def _other_than(suffixes: list[str]) -> str:
    by_first: dict[str, list[str]] = {}
    for suffix in suffixes:
        if suffix:
            by_first.setdefault(suffix[0], []).append(suffix[1:])
    others = "".join(rf"\u{{{ord(first):x}}}" for first in by_first)
    longer = [rf"\u{{{ord(first):x}}}(?:{_other_than(rest)})" for first, rest in by_first.items()]
    ends_here = [] if "" in suffixes else [""]
    return "|".join([*ends_here, rf"[^\x00{others}](?s:.*)", *longer])
