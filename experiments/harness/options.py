"""Parses lists of numbers on the command line."""

from common.errors import ConfigError


def numbers(text: str, option: str) -> list[float]:
    """The numbers of a comma-separated list in order, without repetitions. Raises ConfigError outside 0 to 1e6."""
    try:
        values = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers separated by commas, not {text!r}") from error
    if not all(0 <= number < 1e6 for number in values):
        raise ConfigError(f"{option} takes numbers from 0 to a million, not {text!r}")
    return values
