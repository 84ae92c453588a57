"""Greedy answers are the same in every form, for every draft length, alone and with 63 other sessions (float32)."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import pytest
import pytest_asyncio

from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.draft_channel import DraftChannel
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.round import VerifyRound
from common.types import GREEDY, Verdict

pytestmark = pytest.mark.asyncio(loop_scope="session")

SUBJECTS = ("quantum computing", "deep learning", "machine learning", "the internet", "gravity", "photosynthesis")
TOKENS = 40
LENGTHS = range(17)
SESSIONS = 64
ERROR = 0.25
"""Probability that a draft token is a random one."""

Verify = Callable[[VerifyRound], Awaitable[Verdict]]
Questions = list[tuple[list[int], list[int]]]
"""Prompts, each with its right answer."""


class Drafts:
    """Drafts of `length` tokens of the right answer, with errors; counts the drafted tokens."""

    def __init__(self, right: list[int], length: int, error: float, vocab_size: int, seed: int) -> None:
        self._right, self._length, self._error, self._vocab_size = right, length, error, vocab_size
        self._rng = random.Random(f"{seed} {length} {error}")
        self.drafted = 0

    def after(self, drawn: int) -> list[int]:
        draft = self._right[drawn : drawn + self._length]
        self.drafted += len(draft)
        return [self._wrong(token) if self._rng.random() < self._error else token for token in draft]

    def _wrong(self, token: int) -> int:
        return (token + self._rng.randrange(1, self._vocab_size)) % self._vocab_size


Answer = Callable[[list[int], Drafts], Awaitable[tuple[list[int], int]]]
"""From a prompt to its answer, and how many of its tokens were accepted draft tokens."""
Form = Callable[[CloudEngine], AbstractAsyncContextManager[Answer]]


async def in_rounds(verify: Verify, prompt: list[int], drafts: Drafts) -> tuple[list[int], int]:
    """The answer, and how many of its tokens were accepted draft tokens."""
    drawn: list[int] = []
    accepted = 0
    while len(drawn) < TOKENS:
        asked = VerifyRound(prompt + drawn, drafts.after(len(drawn)))
        verdict = await verify(asked)
        assert verdict.token_ids[: verdict.accepted] == asked.draft[: verdict.accepted]
        assert 1 <= len(verdict.token_ids) <= verdict.accepted + 1
        drawn += verdict.token_ids
        accepted += verdict.accepted
        if verdict.finish_reason:
            break
    return drawn[:TOKENS], accepted


@asynccontextmanager
async def stateless_form(engine: CloudEngine) -> AsyncIterator[Answer]:
    async def answer(prompt: list[int], drafts: Drafts) -> tuple[list[int], int]:
        return await in_rounds(lambda asked: stateless.verify(engine, asked), prompt, drafts)

    yield answer


@asynccontextmanager
async def resident_form(engine: CloudEngine) -> AsyncIterator[Answer]:
    """Sessions without a live request are verified statelessly, as in the server."""
    pool = ResidentPool(engine, 16, 60.0)
    sessions = itertools.count()

    async def answer(prompt: list[int], drafts: Drafts) -> tuple[list[int], int]:
        session = f"{next(sessions)}"

        async def verify(asked: VerifyRound) -> Verdict:
            return await pool.verify(session, asked) or await stateless.verify(engine, asked)

        return await in_rounds(verify, prompt, drafts)

    try:
        yield answer
    finally:
        await pool.close()
    assert pool.continued > pool.opened > 0


@asynccontextmanager
async def continuous_form(engine: CloudEngine) -> AsyncIterator[Answer]:
    async with DraftChannel() as channel:

        async def answer(prompt: list[int], drafts: Drafts) -> tuple[list[int], int]:
            drawn: list[int] = []
            with channel.sender() as sender:
                running = ContinuousAnswer(engine, VerifyRound(prompt, [], GREEDY, TOKENS), sender)
                running.draft(len(prompt), drafts.after(0))
                async with aclosing(running.frames()) as frames:
                    async for frame in frames:
                        drawn += getattr(frame, "token_ids", ())
                        running.draft(len(prompt) + len(drawn), drafts.after(len(drawn)))
            return drawn, running.progress.accepted

        yield answer


FORMS = [stateless_form, resident_form, continuous_form]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def questions(cloud_engine: CloudEngine) -> Questions:
    """A different prompt for each session, with the engine's answer without drafts."""
    asked = []
    for subject in SUBJECTS:
        chat = [{"role": "user", "content": f"Explain {subject}"}]
        text = cloud_engine.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        asked.append(list(cloud_engine.tokenizer.encode(text, add_special_tokens=False)))
    asked += [[*prompt, 5 + n] for n in range(SESSIONS) for prompt in asked[: len(SUBJECTS)]]
    plain = [stateless.verify(cloud_engine, VerifyRound(prompt, [], GREEDY, TOKENS)) for prompt in asked[:SESSIONS]]
    right = [verdict.token_ids for verdict in await asyncio.gather(*plain)]
    assert len(right[0]) == TOKENS
    assert sum(map(len, right)) > SESSIONS * TOKENS / 2
    return list(zip(asked, right, strict=False))


async def assert_exact(answer: Answer, engine: CloudEngine, asked: Questions, lengths: Sequence[int]) -> None:
    """All questions at once, the n-th with drafts of the n-th length, get their right answers."""
    drafts = [
        Drafts(right, length, ERROR, engine.vocab_size, seed)
        for seed, ((_, right), length) in enumerate(zip(asked, lengths, strict=True))
    ]
    jobs = [answer(prompt, one) for (prompt, _), one in zip(asked, drafts, strict=True)]
    answers = await asyncio.gather(*jobs)
    assert [drawn for drawn, _ in answers] == [right for _, right in asked]
    accepted, drafted = sum(count for _, count in answers), sum(one.drafted for one in drafts)
    assert accepted < drafted or not any(lengths)
    assert accepted > 0 or max(lengths) < 4  # so short a draft may always be late for a running generation


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
async def test_one_session_is_exact_for_drafts_of(
    cloud_engine: CloudEngine, questions: Questions, form: Form, length: int
) -> None:
    async with form(cloud_engine) as answer:
        await assert_exact(answer, cloud_engine, questions[:1], [length])


@pytest.mark.parametrize("error", [0.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
async def test_drafts_that_are_always_right_and_always_wrong_are_exact(
    cloud_engine: CloudEngine, questions: Questions, form: Form, error: float
) -> None:
    prompt, right = questions[1]
    async with form(cloud_engine) as answer:
        drawn, accepted = await answer(prompt, Drafts(right, 16, error, cloud_engine.vocab_size, 0))
    assert drawn == right
    assert (accepted > 0) == (error == 0.0)


@pytest.mark.parametrize("form", FORMS)
async def test_sixty_four_sessions_are_exact_for_drafts_of_all_lengths_at_once(
    cloud_engine: CloudEngine, questions: Questions, form: Form
) -> None:
    async with form(cloud_engine) as answer:
        await assert_exact(answer, cloud_engine, questions, [n % len(LENGTHS) for n in range(SESSIONS)])


@pytest.mark.long
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("form", FORMS)
async def test_sixty_four_sessions_are_exact_for_drafts_of(
    cloud_engine: CloudEngine, questions: Questions, form: Form, length: int
) -> None:
    async with form(cloud_engine) as answer:
        await assert_exact(answer, cloud_engine, questions, [length] * SESSIONS)
