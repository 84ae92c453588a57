"""Numbers of JSON schemas, in the form in which llguidance holds them.

llguidance computes in floating point. And of a range between two whole numbers it also allows the whole number that a
bound excludes: of more than 0 and at most 0.5 it takes 0.
"""

import math
from typing import Any, TypeGuard

EXACT = 2**53
"""Whole numbers up to here have a floating point number each."""
DIGITS = 15
"""Significant digits that every floating point number keeps."""
STEP = 1e-9
"""What is nearer to an excluded whole number is excluded, too."""
SIDES = (("minimum", "exclusiveMinimum", math.inf), ("maximum", "exclusiveMaximum", -math.inf))
"""The bounds of each side, and where the allowed numbers are."""


def held(part: dict[str, Any]) -> dict[str, Any]:
    """A schema with bounds that allow no number which those of `part` do not.

    Raises ValueError for a value in `const` or `enum` that llguidance would round.
    """
    for keyword in ("const", "enum"):
        if not _exact(part.get(keyword)):
            raise ValueError(f"{keyword}: numbers with more than {DIGITS} digits are not supported")
    copy = dict(part)
    for bound, exclusive, inward in SIDES:
        if copy.get(exclusive) is True and _is_number(copy.get(bound)):  # as in draft 4
            copy[exclusive] = copy.pop(bound)
        for keyword in (bound, exclusive):
            if _is_number(value := copy.get(keyword)):
                copy[keyword] = _inside(value, inward)
        if _is_number(value := copy.get(exclusive)) and value == math.floor(value):
            copy[exclusive] = value + math.copysign(max(STEP, math.ulp(value)), inward)
    return copy


def _exact(value: Any) -> bool:
    match value:
        case list():
            return all(map(_exact, value))
        case dict():
            return all(map(_exact, value.values()))
        case float():
            return float(f"{value:.{DIGITS}g}") == value
        case int():
            return abs(value) <= EXACT
        case _:
            return True


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inside(value: float, inward: float) -> float:
    """The number itself, or the next one in the allowed range that floating point has."""
    if isinstance(value, float) or abs(value) <= EXACT:
        return value
    near = float(value)
    outside = near < value if inward > 0 else near > value
    return int(math.nextafter(near, inward) if outside else near)
