"""Which replica a request goes to: that of its session, the one that holds its prompt, or the least busy one."""

import random

from hypothesis import given
from hypothesis import strategies as st

from cloud.replicas.choice import MAX_LOAD_FACTOR, choose

NAMES = st.sampled_from(["0", "1", "2", "3"])
LOADS = st.dictionaries(NAMES, st.integers(0, 50), min_size=1)
PROMPT = list(range(100))


@given(LOADS, st.dictionaries(NAMES, st.integers(0, 200)), st.lists(st.integers(0, 2**31), max_size=200))
def test_the_choice_is_usable_below_its_share_and_repeatable(
    loads: dict[str, int], held: dict[str, int], token_ids: list[int]
) -> None:
    chosen = choose(loads, token_ids, held)
    assert loads[chosen] < MAX_LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads)
    assert choose(dict(reversed(loads.items())), token_ids, held) == chosen


@given(LOADS, NAMES)
def test_a_session_stays_with_its_replica_however_busy_while_that_is_usable(loads: dict[str, int], kept: str) -> None:
    assert choose(loads, kept=kept) == (kept if kept in loads else choose(loads))


def test_the_longest_prefix_wins_over_the_load_as_long_as_that_is_even() -> None:
    held = {"0": 64, "1": 96}
    assert choose({"0": 1, "1": 2, "2": 0}, PROMPT, held) == "0"
    assert choose({"0": 2, "1": 2, "2": 1}, PROMPT, held) == "1"
    assert choose({"0": 9, "1": 9, "2": 0}, PROMPT, held) == "2"


def test_what_nearly_all_prompts_begin_with_decides_nothing() -> None:
    """Without the threshold the first replica would get every prompt."""
    held = {"0": 32}
    assert choose({"0": 1, "1": 0}, PROMPT, held) == "1"
    assert choose({"0": 1, "1": 1}, PROMPT[:40], held) == "0"


def test_the_least_busy_one_gets_a_prompt_that_nobody_holds() -> None:
    assert choose({"0": 3, "1": 2, "2": 3}, PROMPT) == "1"
    assert choose({"0": 3, "1": 2}) == "1"


def test_prompts_are_spread_over_idle_replicas_and_equal_beginnings_meet() -> None:
    loads = dict.fromkeys("0123", 0)
    source = random.Random(5)
    chosen = []
    for _ in range(400):
        prompt = [source.randrange(1000) for _ in range(80)]
        chosen.append(choose(loads, prompt))
        assert choose(loads, [*prompt[:64], 1, 2, 3]) == chosen[-1]
    assert all(60 < chosen.count(name) < 140 for name in loads)
