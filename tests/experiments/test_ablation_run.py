"""A whole ablation run on fake servers: warming, asking, counting, the journal, resuming."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from rich.console import Console

from common.errors import ConfigError, EndpointError, StartError
from common.http.messages import reply
from common.http_server import make_app
from common.types import Collaboration
from edge.metrics import AnswerMetrics
from experiments.harness import experiment
from experiments.harness.delay_proxy import DelayProxy
from experiments.harness.servers import EdgeSite
from experiments.report import schema
from experiments.report.schema import ExperimentReport
from experiments.setup import ablations
from experiments.setup.configurations import Needs
from tests.experiments.test_ablation_plan import A_RUN

pytestmark = pytest.mark.asyncio(loop_scope="function")

QUESTIONS, REPEATS = 4, 2
ONLY = "baseline,no_confidence,cloud_only"


class FakeEdge:
    """Answers every question with its own text and counts as the real edge; `fails` decides which requests fail."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fails: Callable[[dict[str, Any]], bool] = lambda body: False
        self.ready = True
        self.at: asyncio.Event | None = None
        """If given, it is set at the next request for an answer, which then hangs."""

    def app(self) -> web.Application:
        """A new server: its counters begin at 0."""
        registry = CollectorRegistry()
        app = make_app(registry=registry)
        self._metrics = AnswerMetrics(registry)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        return app

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [body for body in self.asked if body["max_tokens"] != 2]

    async def _ready(self, request: web.Request) -> web.Response:
        if not self.ready:
            raise EndpointError("the engine has died")
        return reply(request, {})

    async def _stats(self, request: web.Request) -> web.Response:
        engine = {"prompt_tokens": 9 * len(self.asked), "reused_prompt_tokens": 8 * len(self.asked)}
        return reply(request, {"engine": {**engine, "drafted_tokens": 0, "steps": 0}})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.at is not None and body["max_tokens"] != 2:
            self.at.set()
            await asyncio.sleep(3600)
        self.asked.append(body)
        if self.fails(body):
            raise EndpointError("the cloud is lost")
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        piece = {"text": text} if "prompt" in body else {"delta": {"content": text}}
        tokens = {"edge": 2, "accepted": 1, "recovered": 0, "bonus": 0, "cloud": 0}
        report = Collaboration(rounds=1, cloud_steps=1, drafted=2, accepted=1, tokens=tokens)
        self._metrics.record_answer(report)
        counts = {"tokens": tokens, "rounds": 1, "cloud_steps": 1, "drafted": 2, "accepted": 1}
        response = web.StreamResponse()
        await response.prepare(request)
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        for event in ({"choices": [piece]},
                      {"choices": [], "usage": usage, "collaboration": counts}):  # fmt: skip
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[int]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> FakeEdge:
    """In place of all servers that an experiment would start."""
    edge = FakeEdge()

    async def ready(request: web.Request) -> web.Response:
        return reply(request, {})

    @contextlib.asynccontextmanager
    async def fleet(args: object, settings: object, wanted: list[Needs], report: object) -> AsyncIterator[object]:
        cloud = make_app()
        cloud.router.add_get("/ready", ready)
        async with served(edge.app()) as port, served(cloud) as cloud_port, DelayProxy("127.0.0.1", cloud_port) as net:
            where = EdgeSite(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{cloud_port}", net)
            yield dict.fromkeys(wanted, where)

    monkeypatch.setattr(experiment, "fleet", fleet)
    monkeypatch.setattr("experiments.counters.scrape.STILL_SECONDS", 0.0)
    return edge


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Questions that FakeEdge answers rightly, except the last one."""
    file = tmp_path / "data.jsonl"
    right = [*(f"question {n}" for n in range(QUESTIONS - 1)), "something else"]
    lines = [json.dumps({"prompt": f"question {n}", "answer": answer}) for n, answer in enumerate(right)]
    file.write_text("\n".join(lines))
    return file


async def run(data: Path, folder: Path, *flags: str, only: str = ONLY) -> ExperimentReport:
    options = ["--data", str(data), "--output", str(folder), "--max-tokens", "9", *flags]
    args = experiment.parser("", QUESTIONS, REPEATS).parse_args(options)
    base = experiment.base_config(args)
    chosen = ablations.chosen(only, base.experiments.ablations)
    return await experiment.run(args, chosen, base, Console(quiet=True), A_RUN)


async def test_every_answer_is_in_the_report_and_answers_and_servers_count_the_same(
    edge: FakeEdge, data: Path, tmp_path: Path
) -> None:
    found = await run(data, tmp_path)
    assert names(tmp_path) == {"data.jsonl", *(f"ablation_report.{kind}" for kind in ("json", "md", "html"))}
    assert schema.read(tmp_path / "ablation_report.json") == found
    assert [one.answers for one in found.configurations] == [QUESTIONS * REPEATS] * 3
    for rows in found.rows.values():
        assert [(row.question, row.repeat) for row in rows] == [(n, r) for n in range(QUESTIONS) for r in range(2)]
        for row in rows:
            assert row.counts is not None
            assert (row.counts.edge.answers, row.counts.edge.drafted) == (1, row.drafted)
            assert row.counts.edge.prefix == 9 and row.counts.edge.prefix_computed == 1
    quality = found.configurations[0].measures["quality"]
    assert quality.value == (QUESTIONS - 1) / QUESTIONS
    assert found.configurations[1].unchanged


async def test_an_output_that_ends_in_json_is_the_report_itself(edge: FakeEdge, data: Path, tmp_path: Path) -> None:
    found = await run(data, tmp_path / "new" / "mine.json")
    assert names(tmp_path / "new") == {f"mine.{kind}" for kind in ("json", "md", "html")}
    assert schema.read(tmp_path / "new" / "mine.json") == found


async def test_each_question_is_warmed_in_the_same_way_right_before_it_is_asked(
    edge: FakeEdge, data: Path, tmp_path: Path
) -> None:
    await run(data, tmp_path, "--turns", "2")
    settled, counted = edge.asked[: 3 * QUESTIONS], edge.asked[3 * QUESTIONS :]
    assert len({(str(body["messages"]), settings(body)) for body in settled}) == 3 * QUESTIONS
    assert len(counted) == 2 * 3 * QUESTIONS * REPEATS
    for warmed, asked in zip(counted[::2], counted[1::2], strict=True):
        assert warmed["messages"] == asked["messages"]
        assert (warmed["max_tokens"], asked["max_tokens"]) == (2, 9)
        assert {key: warmed[key] for key in ("use_confidence_check", "temperature")} == {
            "use_confidence_check": False, "temperature": 0,
        }  # fmt: skip
        roles = [message["role"] for message in asked["messages"]]
        assert roles == ["user", "assistant"] * 2 + ["user"]
        texts = [message["content"] for message in asked["messages"]]
        assert texts[-1] not in texts[:-1]
    for body in settled:
        assert sum(settings(each) == settings(body) for each in counted[1::2]) == QUESTIONS * REPEATS
    same = {str(body["messages"]) for body in edge.answers}
    assert len(same) == QUESTIONS, "a question has the same turns before it each time"


def settings(body: dict[str, Any]) -> tuple[object, ...]:
    return body.get("mode"), body.get("use_confidence_check")


async def test_an_answer_that_fails_is_a_row_and_the_run_goes_on(edge: FakeEdge, data: Path, tmp_path: Path) -> None:
    edge.fails = lambda body: body.get("mode") == "cloud_only" and body["messages"][-1]["content"] == "question 1"
    found = await run(data, tmp_path)
    cloud = found.configurations[2]
    assert (cloud.answers, cloud.failures) == ((QUESTIONS - 1) * REPEATS, REPEATS)
    assert cloud.first_failure is not None and "the cloud is lost" in cloud.first_failure
    assert [row.error is None for row in found.rows["cloud_only"] if row.question == 1] == [False, False]
    assert cloud.measures["success_rate"].value == (QUESTIONS - 1) / QUESTIONS
    assert found.configurations[0].failures == 0


async def test_a_configuration_that_answers_nothing_is_an_error_beside_the_report(
    edge: FakeEdge, data: Path, tmp_path: Path
) -> None:
    edge.fails = lambda body: body.get("mode") == "cloud_only"
    with pytest.raises(EndpointError, match=r"cloud_only: nothing was answered; .*the cloud is lost"):
        await run(data, tmp_path)
    assert schema.read(tmp_path / "ablation_report.json").configurations[2].failures == QUESTIONS * REPEATS


async def test_a_lost_server_ends_the_run_with_what_was_measured_kept(
    edge: FakeEdge, data: Path, tmp_path: Path
) -> None:
    def dies(body: dict[str, Any]) -> bool:
        edge.ready = len(edge.answers) <= 3 * QUESTIONS + 10
        return not edge.ready

    edge.fails = dies
    with pytest.raises(StartError, match=r"the edge server is lost: .*died; 10 answers are kept, --resume goes on"):
        await run(data, tmp_path)
    assert not (tmp_path / "ablation_report.json").exists()
    edge.fails, edge.ready = (lambda body: False), True
    found = await run(data, tmp_path, "--resume")
    assert sum(one.answers for one in found.configurations) == 3 * QUESTIONS * REPEATS
    assert sum(one.failures for one in found.configurations) == 0


async def test_an_interrupted_run_resumes_and_ends_with_the_same_report(
    edge: FakeEdge, data: Path, tmp_path: Path
) -> None:
    settling = 3 * QUESTIONS
    whole = await run(data, tmp_path / "whole")
    before, edge.asked = edge.answers[settling:], []
    cut = tmp_path / "cut"
    task = asyncio.create_task(run(data, cut))
    while len(edge.answers) < settling + 5:
        await asyncio.sleep(0.001)
    edge.at = asyncio.Event()
    await edge.at.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made = edge.answers[settling:]
    edge.at, edge.asked = None, []
    with pytest.raises(ConfigError, match="--resume"):
        await run(data, cut)
    with pytest.raises(ConfigError, match="other options"):
        await run(data, cut, "--resume", "--seed", "1")
    resumed = await run(data, cut, "--resume")
    counted = len(before) - len(made)
    assert made + edge.answers[-counted:] == before, "what was answered is not asked again, and the order is the same"
    assert counts_of(resumed) == counts_of(whole)
    assert names(cut) == names(tmp_path / "whole"), "the journal is gone"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def counts_of(report: ExperimentReport) -> dict[str, dict[str, float]]:
    names = [name for name, info in report.measures.items() if info.counted]
    return {
        one.name: {name: one.measures[name].value for name in names if name in one.measures}
        for one in report.configurations
    }


@pytest.mark.parametrize(("text", "message"), [("", "no question"), ('{"prompt": "a"}\n{"promt": "b"}', "line 2")])
async def test_bad_data_is_refused_before_anything_starts(
    edge: FakeEdge, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        await run(file, tmp_path / "out")
    assert not edge.asked and not (tmp_path / "out").exists()
