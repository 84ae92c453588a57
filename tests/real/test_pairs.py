"""Two real pairs on real servers: exact answers, long prompts, calibration, and a cloud that is lost in mid-answer.

The tests run in this order, on one cloud; the last one kills it.
"""

import asyncio
import json
import os
import re
import signal
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from msgspec.structs import replace

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.report import CalibratedConfig
from calibration.target import CalibrationTarget
from cli.terminal import console
from common import config
from common.files.installation import PROJECT
from common.http.client import HTTPClient
from common.http_client import EdgeCloudHTTPClient
from experiments.questions.general import CODE, PROSE
from tests.real.real_models import CLIENT, OTHER, SAME, RealServers, needs, real_servers

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    *needs("qwen2.5-coder-0.5b.gguf", "smollm2-135m.gguf", "qwen2.5-coder-1.5b"),
]
PROMPTS = [prompt for pair in zip(CODE, PROSE, strict=True) for prompt in pair][:20]
TOKENS = 32
DECOMPOSED = [
    unicodedata.normalize("NFD", prompt)
    for prompt in (
        "Qu'est-ce qu'un café crème ?",
        "¿Qué es un año luz?",
        "Was heißt „schöne Grüße“ auf Englisch?",
        "Ångström とは何ですか。が",
    )
]
"""Accents apart from their letters."""
LOSSLESS: dict[str, Any] = {"use_confidence_check": False}
ALWAYS = {"confidence_threshold": 1.0, "product_threshold": 1.0}
"""Gated, with every token below the thresholds."""
MODES: dict[str, dict[str, Any]] = {
    "rounds": {**LOSSLESS, "way": "rounds"},
    "continuous": {**LOSSLESS, "way": "continuous"},
    "gated": ALWAYS,
    "cloud generates": {**ALWAYS, "use_draft_verify": False},
    "cloud only": {"mode": "cloud_only"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealServers]:
    async with real_servers(tmp_path_factory.mktemp("real"), [SAME, OTHER]) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def truths(real: RealServers) -> list[dict[str, Any]]:
    """The cloud's own answers to PROMPTS."""
    return [await chat(real.cloud, prompt) for prompt in PROMPTS]


async def chat(server: HTTPClient, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": TOKENS} | fields
    answer: dict[str, Any] = await server.post("/v1/chat/completions", body, dict)
    return answer


def text(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


async def restarts(cloud: HTTPClient) -> float:
    """How often the cloud has started its engine again."""
    async with aiohttp.ClientSession() as session, session.get(cloud.base_url + "/metrics") as answer:
        found = re.search(r"^edgecloud_engine_restarts_total (\S+)$", await answer.text(), re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize("pair", [SAME, OTHER])
async def test_lossless_greedy_answers_are_the_clouds_own(
    real: RealServers, truths: list[dict[str, Any]], pair: str
) -> None:
    """20 prompts of code and prose, at float32."""
    drafted = accepted = 0
    for prompt, truth in zip(PROMPTS, truths, strict=True):
        answer = await chat(real.edges[pair], prompt, **LOSSLESS)
        report = answer["collaboration"]
        assert report["degraded"] is None and report["lossless"]
        assert text(answer) == text(truth)
        assert answer["usage"]["completion_tokens"] == truth["usage"]["completion_tokens"]
        drafted, accepted = drafted + report["drafted"], accepted + report["accepted"]
    print(f"{pair}: {accepted} of {drafted} drafted tokens accepted")
    assert 0 < accepted < drafted, "the edge is right and wrong"


@pytest.mark.parametrize("prompt", DECOMPOSED)
async def test_letters_that_the_clouds_tokenizer_composes_are_answered_as_by_the_cloud(
    real: RealServers, prompt: str
) -> None:
    """Qwen2's own tokenizer normalizes to NFC; llama.cpp does not."""
    assert unicodedata.normalize("NFC", prompt) != prompt
    truth, answer = await chat(real.cloud, prompt), await chat(real.edges[SAME], prompt, **LOSSLESS)
    assert answer["collaboration"]["degraded"] is None and answer["collaboration"]["lossless"]
    assert answer["usage"]["prompt_tokens"] == truth["usage"]["prompt_tokens"]
    assert text(answer) == text(truth)


async def test_answers_of_the_cloud_do_not_keep_the_edge_from_answering(real: RealServers) -> None:
    edge = real.edges[SAME]
    waiting = [asyncio.ensure_future(chat(edge, prompt, mode="cloud_only")) for prompt in PROMPTS[:8]]
    assert len(waiting) > config.load(SAME, environment={}).edge.model.sequences
    answer = await chat(edge, PROMPTS[8], mode="edge_only", max_tokens=4)
    assert answer["collaboration"]["cloud_calls"] == 0
    assert not any(one.done() for one in waiting), "32 tokens of the cloud take longer than 4 of the edge"
    assert all(not one["collaboration"]["degraded"] for one in await asyncio.gather(*waiting))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [2200, 3900])
async def test_a_long_prompt_is_answered_by_the_cloud_without_a_restart(
    real: RealServers, length: int, mode: str
) -> None:
    """In rounds and with the cloud alone nothing of the prompt is in a cache; then its beginning is."""
    prompt = await prompt_of(real.cloud, length, mode if mode in ("rounds", "cloud only") else "rounds")
    before = await restarts(real.cloud)
    answer = await chat(real.edges[SAME], prompt, max_tokens=8, **MODES[mode])
    report = answer["collaboration"]
    assert report["degraded"] is None
    assert report["cloud_calls"] > 0
    assert length - 60 <= answer["usage"]["prompt_tokens"] <= length
    assert await restarts(real.cloud) == before == 0


async def prompt_of(cloud: HTTPClient, length: int, beginning: str) -> str:
    """A question that has about `length` tokens in the chat template, and begins like no other."""
    question, facts = f"({beginning}, {length}) Read these lines.\n", list[str]()

    async def tokens() -> int:
        whole = {"messages": [{"role": "user", "content": question + "".join(facts) + "Which of them is true?"}]}
        return int((await cloud.post("/tokenize", whole, dict[str, Any]))["count"])

    while (missing := length - await tokens()) > 50:
        facts += [
            f"Line {len(facts) + n}: {(len(facts) + n) ** 2} is a square.\n" for n in range(max(1, missing // 25))
        ]
    return question + "".join(facts) + "Which of them is true?"


def calibration_of(folder: Path, preset: str) -> CalibrationRequest:
    """60 questions, the fewest that a target needs; answers are short, for time."""
    asked = [*PROMPTS, *(f"What is {n} times {n + 3}?" for n in range(40))]
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in asked))
    target = CalibrationTarget("--target-cloud-rate", 0.5, 0.95)
    output = CalibratedConfig(folder / "calibrated.yaml", preset)
    return CalibrationRequest(target, folder / "data.jsonl", output, max_tokens=12)


async def test_calibration_runs_on_the_pair(real: RealServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(SAME, environment={})
    request = calibration_of(tmp_path, f"{PROJECT}/{SAME}")
    monkeypatch.chdir(tmp_path)
    patient = replace(settings.communication, http_client=CLIENT)
    async with EdgeCloudHTTPClient(real.edges[SAME].base_url, real.cloud.base_url, patient) as client:
        await calibrate(client, settings, request, console())
    written = config.load(tmp_path / "calibrated.yaml", environment={})
    assert written.edge.model == settings.edge.model, "the pair stays as it was"
    assert written.edge.confidence != settings.edge.confidence


async def test_a_cloud_that_is_killed_while_it_answers_leaves_a_whole_answer_that_says_so(real: RealServers) -> None:
    """The last test: the cloud is gone after it."""
    body = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 64, "temperature": 0, "stream": True}
    pieces, report = list[str](), dict[str, Any]()
    async for event in real.edges[SAME].events("/v1/chat/completions", body | LOSSLESS):
        chunk = json.loads(event)
        pieces += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        report = chunk.get("collaboration") or report
        if len([piece for piece in pieces if piece]) == 2 and real.cloud_process._process:
            os.killpg(real.cloud_process._process.pid, signal.SIGKILL)
            await asyncio.sleep(0)
    assert report["degraded"] and not report["lossless"]
    assert report["tokens"]["edge"] > 0, "the edge went on"
    assert sum(report["tokens"].values()) > report["tokens"]["edge"], "after tokens of the cloud"
    assert "".join(pieces).strip()
