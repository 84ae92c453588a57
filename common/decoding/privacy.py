"""Prompts that must not leave the edge, by patterns of the config. Knows neither tokens nor requests."""

import re
from collections.abc import Sequence


def is_private(prompt: str, patterns: Sequence[str]) -> bool:
    """Whether one of the regular expressions is found in what a cloud would be sent of the prompt."""
    return any(re.search(pattern, prompt) for pattern in patterns)  # re keeps what it has compiled
