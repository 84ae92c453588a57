"""Records traces over HTTP: the cloud's answers, what the edge drafts along them, and the times of both."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.policy import trace as traces
from benchmarks.policy.trace import AnswerTrace, PairTimes
from cli import terminal
from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.config_schema import Config
from common.decoding.interfaces import Drafter
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import Message
from common.protocol.tokenization import TokenizeReply, TokenizeRequest
from common.types import GREEDY, Sampling

STRIDE = 12
"""Tokens of one draft along the answer: more are wasted at a disagreement, fewer need more calls."""
LENGTHS = (0, 1, 2, 4, 8, 16)
"""Lengths of the drafts whose verify is timed."""
TIMED = 5
"""The longest answers, along which the pair is timed."""


class RecordedPrompt(NamedTuple):
    """A prompt of one kind of text, and how its answer is drawn."""

    kind: str
    text: str
    sampling: Sampling = GREEDY


class RecordedAnswer(NamedTuple):
    """A trace, and the token ids that it was made from."""

    trace: AnswerTrace
    prompt_ids: list[int]
    answer_ids: list[int]


async def record(client: EdgeCloudHTTPClient, prompt: RecordedPrompt, max_tokens: int) -> RecordedAnswer:
    """The cloud's answer to `prompt`, one user turn in the edge's chat template, and the edge's drafts along it."""
    question = TokenizeRequest(messages=[Message(role="user", content=prompt.text)])
    prompt_ids = (await client.edge.post("/tokenize", question, TokenizeReply)).tokens
    verdict = await CloudVerifier(client.clouds).verify(prompt_ids, [], prompt.sampling, max_tokens)
    answer = verdict.token_ids
    confidences, agrees, astray = await along(EdgeDrafter(client.edge), prompt_ids, answer)
    trace = AnswerTrace(
        kind=prompt.kind,
        prompt_tokens=len(prompt_ids),
        confidences=confidences,
        agrees=agrees,
        astray=astray,
        temperature=prompt.sampling.temperature,
        ended=verdict.finish_reason == "stop",
    )
    return RecordedAnswer(trace, prompt_ids, answer)


async def along(
    drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[list[float], list[bool], dict[int, list[float]]]:
    """Confidences, agreement and what follows disagreements (see `AnswerTrace`), along the cloud's answer.

    A draft covers several positions while it agrees; after its first token that differs, its rest is what the edge
    drafts when it is astray, and the next draft begins behind the answer's token.
    """
    confidences, agrees, astray = list[float](), list[bool](), dict[int, list[float]]()
    while len(agrees) < len(answer):
        at = len(agrees)
        draft = await drafter.draft([*prompt, *answer[:at]], STRIDE, GREEDY)
        rounded = [round(confidence, 4) for confidence in draft.confidences] or [0.0]
        for n, token in enumerate((draft.token_ids or [-1])[: len(answer) - at]):
            confidences.append(rounded[n])
            agrees.append(token == answer[at + n])
            if not agrees[-1]:
                astray[at + n] = rounded[n + 1 :]
                break
    return confidences, agrees, astray


async def measure(client: EdgeCloudHTTPClient, name: str, answers: Sequence[RecordedAnswer]) -> PairTimes:
    """Times of the pair while nothing else is asked of it, as medians over `answers`."""
    rounds = [timed for recorded in answers for timed in await _rounds(client, recorded)]
    by_length = {length: [t.cloud for t in rounds if t.length == length] for length in LENGTHS}
    medians = {length: statistics.median(found) for length, found in by_length.items() if found}
    line = statistics.linear_regression(list(medians), list(medians.values()))
    reads = [await _prompt_seconds(client, recorded) / len(recorded.prompt_ids) for recorded in answers]
    return PairTimes(
        name=name,
        draft=statistics.median([await _draft_seconds(client, recorded) for recorded in answers]),
        step=line.intercept,
        verified=max(line.slope, 0.0),
        cloud_read=statistics.median(reads),
        overhead=statistics.median(timed.around for timed in rounds),
    )


class _TimedRound(NamedTuple):
    """Draft tokens of a verify; its seconds in the cloud, and around it."""

    length: int
    cloud: float
    around: float


async def _rounds(client: EdgeCloudHTTPClient, recorded: RecordedAnswer) -> list[_TimedRound]:
    """Verifies right drafts of all LENGTHS, after one round that reads the prompt."""
    verifier, committed, found = CloudVerifier(client.clouds), list(recorded.prompt_ids), list[_TimedRound]()
    committed += (await verifier.verify(committed, [], GREEDY, 1)).token_ids
    for length in LENGTHS:
        draft = recorded.answer_ids[len(committed) - len(recorded.prompt_ids) :][:length]
        verdict = await verifier.verify(committed, draft, GREEDY, 1)
        cloud = verdict.cloud_ms / 1e3
        found.append(_TimedRound(len(draft), cloud, verdict.latency_ms / 1e3 - cloud))
        committed += verdict.token_ids
    return [timed for timed in found if timed.length in LENGTHS]


async def _draft_seconds(client: EdgeCloudHTTPClient, recorded: RecordedAnswer) -> float:
    """Seconds of a drafted token, after one draft that reads the prompt."""
    drafter, context = EdgeDrafter(client.edge), [*recorded.prompt_ids, *recorded.answer_ids[:1]]
    await drafter.draft(context, 1, GREEDY)
    draft = await drafter.draft(context, 16, GREEDY)
    return draft.latency_ms / 1e3 / len(draft.token_ids)


async def _prompt_seconds(client: EdgeCloudHTTPClient, recorded: RecordedAnswer) -> float:
    """Seconds that the cloud takes for a prompt's first token more than for a later one."""
    verifier = CloudVerifier(client.clouds, use_kv_cache=False)
    first = await verifier.verify(recorded.prompt_ids, [], GREEDY, 1)
    second = await CloudVerifier(client.clouds).verify([*recorded.prompt_ids, *first.token_ids], [], GREEDY, 1)
    return max(first.cloud_ms - second.cloud_ms, 0.0) / 1e3


async def record_all(config: Config, prompts: Sequence[RecordedPrompt], max_tokens: int, file: Path) -> None:
    """Records `prompts` from the servers that `config` names; writes what there is after each."""
    console, done = terminal.console(), list[RecordedAnswer]()
    async with EdgeCloudHTTPClient.of(config) as client:
        for prompt in prompts:
            done.append(await record(client, prompt, max_tokens))
            if len(done) == 1:
                times = await measure(client, Path(config.cloud.model.path).name, done)
            traces.write(file, times, [recorded.trace for recorded in done])
            found = done[-1].trace
            console.print(f"{prompt.kind}: {len(found.agrees)} tokens, the edge is right at {sum(found.agrees)}")
        long = sorted(done, key=lambda recorded: len(recorded.answer_ids))[-TIMED:]
        times = await measure(client, times.name, long)
        traces.write(file, times, [recorded.trace for recorded in done])
