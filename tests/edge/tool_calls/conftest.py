"""Hypothesis on a machine that other programs use, too: no example has a deadline, none is kept for the next run."""

from hypothesis import settings

settings.register_profile("shared", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("shared")
