"""Lists of numbers on the command line. Knows not what they are for."""

from common.errors import ConfigError


def numbers(text: str, option: str) -> list[float]:
    """Each once, in their order. Raises ConfigError for what are not numbers from 0 up."""
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers with commas between them, not {text!r}") from error
    if not all(0 <= number < 1e6 for number in found):
        raise ConfigError(f"{option} takes numbers from 0 to a million, not {text!r}")
    return found
