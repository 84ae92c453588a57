"""The kinds of values that config keys have: numbers within a range, and secrets."""

from typing import Annotated

from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(gt=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Secret:
    """A key that appears as `***` wherever it is printed, logged or written."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***" if self._value else ""


NO_KEY = Secret()


def decode_secret(type_: type, value: object) -> object:
    """msgspec's `dec_hook` for the config: a string becomes a Secret."""
    if type_ is not Secret or not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)
