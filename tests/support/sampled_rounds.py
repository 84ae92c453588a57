"""Draws many sampled rounds after the same contexts: by plain sampling, and by each form of verifying drafts."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from msgspec.structs import replace

from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.continuous import ContinuousAnswer
from cloud.verify.draft_channel import DraftChannel
from cloud.verify.resident_pool import CloseReason, ResidentPool
from cloud.verify.round import VerifyRound, vllm_params
from common.protocol.prefix_hash import common_prefix
from common.types import GREEDY, Sampling, Verdict

POSITIONS = 3
CONTEXTS = 3
CANDIDATES = 128
"""Positions in high-temperature texts from which each context is chosen."""
STRIDE = 5
"""Tokens by which a context is longer than the one before; few, because each round computes them."""
AT_ONCE = 24
"""Rounds at the same time; with more, the test engine's small steps have no room for whole drafts."""
TOGETHER = 25
"""Plain samples that one request draws."""


@dataclass
class ContextWalk:
    """Contexts, each a prefix of the next one, and a draft after each."""

    contexts: list[list[int]]
    drafts: list[list[int]]


@dataclass
class Samples:
    """The tokens drawn after each context, up to the first that differs from the draft; at most its length plus 1.

    `verified`: how many of the samples had the whole draft verified.
    """

    by_context: list[Counter[tuple[int, ...]]] = field(default_factory=lambda: [Counter() for _ in range(CONTEXTS)])
    verified: int = 0

    def add(self, walk: ContextWalk, at: int, drawn: Sequence[int], verified: bool = False) -> None:
        self.by_context[at][tuple(drawn[: common_prefix(list(drawn), walk.drafts[at]) + 1])] += 1
        self.verified += verified

    def at(self, position: int, walk: ContextWalk) -> list[Counter[int]]:
        """For each context, the tokens drawn at a position of the draft (from 1), where all before it were accepted."""
        found = []
        for drawn, draft in zip(self.by_context, walk.drafts, strict=True):
            counts: Counter[int] = Counter()
            for tokens, times in drawn.items():
                if len(tokens) >= position and list(tokens[: position - 1]) == draft[: position - 1]:
                    counts[tokens[position - 1]] += times
            found.append(counts)
        return found


Form = Callable[[CloudEngine, ContextWalk, Sampling, int], Awaitable[Samples]]


async def walk_of(engine: CloudEngine) -> ContextWalk:
    """Positions in an unlikely text where one token, the context's last, is near certain and the next ones are not.

    The draft is the likeliest continuation. The text of the next context goes on with it, so that a live request can
    keep what it accepts. A continuous answer begins before the certain token, and verifies drafts from after it on.
    """
    question = [{"role": "user", "content": "Explain gravity"}]
    prompt = engine.tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    text = list(engine.tokenizer.encode(prompt, add_special_tokens=False))
    walk = ContextWalk([], [])
    for seed in range(CONTEXTS):
        # Just past a block: all before it is cached, which makes thousands of rounds cheap.
        length = engine.block_size + 1 + STRIDE * seed
        hot = VerifyRound(text, [], Sampling(temperature=2.0, seed=seed), length - len(text))
        async with aclosing(engine.generate(text, vllm_params(hot, ignore_eos=True, n=CANDIDATES))) as outputs:
            places = [text + list(one.token_ids) for one in (await anext(outputs)).outputs]
        rounds = [VerifyRound(place, [], GREEDY, 1 + POSITIONS, logprobs=0) for place in places]
        verdicts = await asyncio.gather(*(stateless.verify(engine, one) for one in rounds))
        place, found = min(zip(places, verdicts, strict=True), key=lambda pair: unevenness(pair[1]))
        walk.contexts.append(place + found.token_ids[:1])
        walk.drafts.append(found.token_ids[1:])
        text = place + found.token_ids
    return walk


def unevenness(verdict: Verdict) -> float:
    """How far the draft's probabilities are from 0.5, at most; 1 if the answer ends or its first token is uncertain."""
    first, *draft = (math.exp(one.logprob) for one in verdict.logprobs or [])
    return 1.0 if verdict.finish_reason or first < 0.97 else max(abs(p - 0.5) for p in draft)


async def plainly(engine: CloudEngine, walk: ContextWalk, sampling: Sampling, times: int) -> Samples:
    """Plain sampling without a seed, cut where a verify would end."""
    samples = Samples()
    unseeded = replace(sampling, seed=None)

    async def sample(at: int) -> None:
        params = vllm_params(VerifyRound(walk.contexts[at], [], unseeded, POSITIONS), n=TOGETHER)
        async with aclosing(engine.generate(walk.contexts[at], params)) as outputs:
            for output in (await anext(outputs)).outputs:
                samples.add(walk, at, list(output.token_ids))

    await in_batches([sample(at) for _ in range(times // CONTEXTS // TOGETHER) for at in range(CONTEXTS)])
    return samples


async def statelessly(engine: CloudEngine, walk: ContextWalk, sampling: Sampling, times: int) -> Samples:
    samples = Samples()

    async def sample(n: int) -> None:
        for at in range(CONTEXTS):
            round = VerifyRound(walk.contexts[at], walk.drafts[at], seeded(sampling, n))
            verdict = await stateless.verify(engine, round)
            samples.add(walk, at, verdict.token_ids, whole_draft(verdict))

    await in_batches([sample(n) for n in range(times // CONTEXTS)])
    return samples


async def residently(engine: CloudEngine, walk: ContextWalk, sampling: Sampling, times: int) -> Samples:
    """Each session goes through all contexts, and commits the text whatever was drawn."""
    samples = Samples()
    pool = ResidentPool(engine, AT_ONCE, 60.0)

    async def sample(n: int) -> None:
        for at in range(CONTEXTS):
            round = VerifyRound(walk.contexts[at], walk.drafts[at], seeded(sampling, n))
            verdict = await pool.verify(f"{n}", round)
            assert verdict is not None
            samples.add(walk, at, verdict.token_ids, whole_draft(verdict))
        await pool.close_session(f"{n}")

    await in_batches([sample(n) for n in range(times // CONTEXTS)])
    await pool.close()
    assert pool.continued > pool.opened and not pool.closed[CloseReason.MISMATCH]
    return samples


async def continuously(
    engine: CloudEngine, walk: ContextWalk, sampling: Sampling, times: int, contradiction: int | None = None
) -> Samples:
    """Answers that begin one token early; the few that do not begin with the context's last token are not counted.

    `contradiction`: a token with which the draft begins one token early, and which contradicts the answer.
    """
    samples = Samples()

    async def sample(channel: DraftChannel, n: int) -> None:
        for at in range(CONTEXTS):
            context, draft = walk.contexts[at], walk.drafts[at]
            # One more token than is compared, because the last token of an answer is never verified.
            round = VerifyRound(context[:-1], [], seeded(sampling, n), 1 + POSITIONS + 1)
            with channel.sender() as sender:
                answer = ContinuousAnswer(engine, round, sender)
                early = [] if contradiction is None else [contradiction]
                answer.draft(len(context) - len(early), early + draft)
                async with aclosing(answer.frames()) as frames:
                    drawn = [token async for frame in frames for token in getattr(frame, "token_ids", ())]
            if drawn[0] == context[-1]:
                samples.add(walk, at, drawn[1:], answer.progress.drafted >= POSITIONS)

    async with DraftChannel() as channel:
        await in_batches([sample(channel, n) for n in range(times // CONTEXTS)])
    return samples


def whole_draft(verdict: Verdict) -> bool:
    """Whether the step seems to have had room for the whole draft, which is cut before any token is drawn."""
    return verdict.accepted in (POSITIONS, len(verdict.token_ids) - 1)


def seeded(sampling: Sampling, n: int) -> Sampling:
    """The `n`-th of many settings that differ only in their seed, if they have one."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + n)


async def in_batches(jobs: Sequence[Awaitable[None]]) -> None:
    """Runs AT_ONCE jobs at a time, so that they share steps."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def gated(job: Awaitable[None]) -> None:
        async with gate:
            await job

    await asyncio.gather(*map(gated, jobs))
