"""Sessions' hidden states: after uploads in any order, those held are those sent, and bounded."""

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from cloud.split.context_manager import CloudContextManager, EvictionReason, Limits
from common.enums import StateEncoding
from common.errors import ForeignSession, OverloadedError, RequestError, StatesMissing
from common.protocol.hidden_states import PackedStates, pack
from tests.support.manual_clock import ManualClock

HIDDEN = 4
ROW = HIDDEN * 4


def rows(start: int, stop: int, session: int = 0) -> PackedStates:
    """The rows of positions `start` to before `stop`, whose values give the position and session."""
    states = np.arange(start, stop, dtype=np.float32)[:, None] + np.full((1, HIDDEN), 1000.0 * session, np.float32)
    return pack(states.astype(np.float32), StateEncoding.FP32)


def positions(found: np.ndarray, session: int = 0) -> list[int]:
    return [int(row[0]) - 1000 * session for row in found]


def test_states_come_back_in_order_once_and_are_released_once() -> None:
    contexts = CloudContextManager()
    contexts.open("s")
    contexts.receive("s", 0, rows(0, 5))
    contexts.receive("s", 3, rows(3, 8))  # three of them again
    assert positions(contexts.states("s", 8)) == list(range(8))
    contexts.release("s", 6)
    assert contexts.held("s") == 8
    assert positions(contexts.states("s", 8)) == [6, 7]
    assert (contexts.received, contexts.duplicates, contexts.bytes) == (8, 2, 2 * ROW)


def test_states_after_a_gap_are_not_kept_and_the_gap_is_reported() -> None:
    contexts = CloudContextManager()
    contexts.open("s")
    contexts.receive("s", 0, rows(0, 3))
    contexts.receive("s", 5, rows(5, 7))
    with pytest.raises(StatesMissing) as caught:
        contexts.states("s", 7)
    assert (caught.value.status, caught.value.held) == (409, 3)
    with pytest.raises(StatesMissing) as caught:
        contexts.states("nobody", 1)
    assert caught.value.held == 0


def test_a_lost_kv_needs_all_states_again_unless_none_were_released() -> None:
    contexts, lost = CloudContextManager(), list[str]()
    contexts.on_drop = lost.append
    contexts.open("s")
    contexts.receive("s", 0, rows(0, 4))
    contexts.forget("s")
    assert contexts.held("s") == 4 and not lost
    contexts.release("s", 3)
    contexts.forget("s")
    assert (contexts.held("s"), contexts.bytes, lost) == (0, 0, ["s"])


def test_a_position_whose_token_was_drawn_before_starts_the_session_over() -> None:
    contexts = CloudContextManager()
    contexts.open("s")
    contexts.receive("s", 0, rows(0, 4))
    contexts.release("s", 4)
    with pytest.raises(StatesMissing) as caught:
        contexts.states("s", 4)
    assert caught.value.held == 0


def test_another_tenant_cannot_touch_a_session() -> None:
    contexts = CloudContextManager()
    contexts.open("s", "a")
    contexts.receive("s", 0, rows(0, 4))
    with pytest.raises(ForeignSession):
        contexts.open("s", "b")
    contexts.open("s", "a")
    assert contexts.held("s") == 4


def test_a_session_unused_for_too_long_is_dropped_unless_a_request_runs() -> None:
    clock = ManualClock()
    contexts = CloudContextManager(Limits(seconds=10), clock)
    for session in "ab":
        contexts.open(session)
        contexts.receive(session, 0, rows(0, 2))
    with contexts.in_use("a"):
        clock.now = 11
        contexts.expire()
        assert (contexts.held("a"), contexts.held("b")) == (2, 0)
    clock.now = 20
    contexts.expire()
    assert contexts.held("a") == 2  # counted from the end of the question
    clock.now = 22
    contexts.expire()
    assert len(contexts) == 0 and contexts.bytes == 0 and contexts.dropped[EvictionReason.IDLE] == 2


def test_the_least_recently_used_session_makes_room_unless_a_request_runs() -> None:
    contexts = CloudContextManager(Limits(total_bytes=6 * ROW))
    for session in "abc":
        contexts.open(session)
        contexts.receive(session, 0, rows(0, 2))
    contexts.receive("a", 2, rows(2, 2 + 1))
    assert [contexts.held(session) for session in "abc"] == [3, 0, 2]
    with contexts.in_use("c"):
        contexts.open("d")
        contexts.receive("d", 0, rows(0, 4))
        assert [contexts.held(session) for session in "acd"] == [0, 2, 4]
        contexts.open("e")
        contexts.receive("e", 0, rows(0, 4))
        with contexts.in_use("e"), pytest.raises(OverloadedError):
            contexts.receive("e", 4, rows(4, 5))


def test_a_session_above_its_own_budget_is_refused_and_dropped() -> None:
    contexts = CloudContextManager(Limits(session_bytes=4 * ROW))
    contexts.open("s")
    contexts.receive("s", 0, rows(0, 3))
    with pytest.raises(RequestError, match="session_bytes"):
        contexts.receive("s", 3, rows(3, 5))
    assert (contexts.held("s"), contexts.bytes, len(contexts)) == (0, 0, 0)


def test_there_are_no_more_sessions_than_allowed() -> None:
    contexts = CloudContextManager(Limits(sessions=2))
    for session in "abc":
        contexts.open(session)
    assert len(contexts) == 2
    with contexts.in_use("b"), contexts.in_use("c"), pytest.raises(OverloadedError):
        contexts.open("d")


@dataclass
class Model:
    """The expected contents: positions held and released of each session."""

    held: dict[str, int] = field(default_factory=dict)
    released: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize("seed", range(60))
def test_random_uploads_in_any_order_hold_what_was_sent_and_no_more(seed: int) -> None:
    rng, clock = random.Random(seed), ManualClock()
    limits = Limits(rng.randrange(20, 60) * ROW, rng.randrange(30, 120) * ROW, seconds=50, sessions=rng.randrange(2, 5))
    contexts, model = CloudContextManager(limits, clock), Model()

    def dropped(session: str) -> None:
        model.held.pop(session, None)
        model.released.pop(session, None)

    contexts.on_drop = dropped
    for _ in range(400):
        clock.now += rng.random()
        session = rng.choice("abcd")
        number = ord(session)
        match rng.randrange(7):
            case 0 | 1 | 2:
                contexts.open(session)
                start = max(0, model.held.get(session, 0) + rng.randrange(-6, 3))
                stop = start + rng.randrange(1, 12)
                try:
                    contexts.receive(session, start, rows(start, stop, number))
                except OverloadedError:
                    continue
                except RequestError:
                    assert session not in model.held
                    continue
                if start <= model.held.get(session, 0) < stop:
                    model.held[session] = stop
            case 3 | 4:
                held, released = model.held.get(session, 0), model.released.get(session, 0)
                position = rng.randrange(1, held + 3)
                if position > held or position <= released:
                    with pytest.raises(StatesMissing) as caught:
                        contexts.states(session, position)
                    assert caught.value.held == model.held.get(session, 0)
                else:
                    found = contexts.states(session, position)
                    assert positions(found, number) == list(range(released, position))
                    contexts.release(session, position)
                    model.released[session] = position
            case 5 if rng.random() < 0.3:
                contexts.forget(session)
            case 6 if rng.random() < 0.2:
                contexts.close(session)
                assert session not in model.held
        alive = {session: held - model.released.get(session, 0) for session, held in model.held.items()}
        assert contexts.bytes == sum(alive.values()) * ROW <= limits.total_bytes
        assert all(count * ROW <= limits.session_bytes for count in alive.values())
        assert all(contexts.held(session) == held for session, held in model.held.items())
        assert len(contexts) <= limits.sessions
