"""Recognizes prompts that must not leave the edge, by the patterns of the config."""

import re
from collections.abc import Sequence


def is_private(prompt: str, patterns: Sequence[str]) -> bool:
    """Whether one of the regular expressions matches somewhere in `prompt`, the text that a cloud would be sent."""
    return any(re.search(pattern, prompt) for pattern in patterns)  # re caches compiled patterns
