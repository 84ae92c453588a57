"""A recorded answer, replayed, has the rounds and drafts that the real pair has."""

import asyncio

from benchmarks.policy.record import RecordedPrompt, measure, record
from benchmarks.policy.replay import ReplaySetting, replay
from common.config_schema import CommunicationConfig
from common.decoding.policy import Plan
from common.http.client import HTTPClient
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message
from common.protocol.openai_replies import ChatCompletion
from common.types import Collaboration, Objective, VerificationMode
from models import heldout
from tests.conftest import Servers

TOKENS = 48


async def test_a_replay_has_the_rounds_and_the_drafts_of_the_real_pair(servers: Servers) -> None:
    """Of objective cost, whose draft lengths depend on no clock; single tokens may fall otherwise in another batch."""
    prompts = [prompt for _, prompt, _ in heldout.pairs(per_kind=1)][:8]
    urls = CommunicationConfig(edge_endpoint=servers.edge_url, cloud_endpoint=servers.cloud_url)
    async with EdgeCloudHTTPClient(communication=urls) as client:
        recorded = [await record(client, RecordedPrompt("held out", prompt), TOKENS) for prompt in prompts]
        times = await measure(client, "demo", [one for one in recorded if len(one.answer_ids) > 8][:2])
        real = [await counted(client.edge, prompt) for prompt in prompts]
    plan = Plan(
        use_confidence_check=False,
        objective=Objective.COST,
        verification_mode=VerificationMode.ROUNDS,
        draft_ahead=False,
    )
    traces = [one.trace for one in recorded]
    replayed = [one.report for one in await asyncio.to_thread(replay, traces, ReplaySetting(times), plan)]
    assert sum(report.rounds for report in replayed) > len(prompts)
    for name in ("rounds", "drafted", "accepted"):
        ours, theirs = (sum(getattr(one, name) for one in reports) for reports in (replayed, real))
        assert abs(ours - theirs) <= 0.15 * theirs, name
    assert 0 < times.draft < times.step and times.verified < times.step


async def counted(edge: HTTPClient, prompt: str) -> Collaboration:
    """The report of a real answer, whose counts depend on no clock."""
    request = ChatRequest(
        messages=[Message(role="user", content=prompt)],
        max_tokens=TOKENS,
        temperature=0,
        use_confidence_check=False,
        objective=Objective.COST,
        way=VerificationMode.ROUNDS,
        draft_ahead=False,
    )
    return (await edge.post("/v1/chat/completions", request, ChatCompletion)).collaboration
