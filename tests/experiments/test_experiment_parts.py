"""The parts of experiments: questions, load, ratios, journals, counters. Without a real server."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from common.errors import ConfigError, EndpointError
from common.http.client import HTTPClient
from experiments.counters.cloud import SAMPLES, CloudCounts, parsed
from experiments.harness.journal import Journal
from experiments.harness.load import load, token_gaps
from experiments.harness.statistics import Pair, quantile, speed_ratio, typical_ratio
from experiments.network.answer_modes import ANSWER_MODES, CLOUD_ONLY, DEFAULT_MODES, select_modes
from experiments.questions import workload
from experiments.questions.workload import from_file, questions

# -- questions


def test_the_same_seed_asks_the_same_and_fewer_are_the_first_of_more() -> None:
    many = questions(200, seed=3)
    assert many == questions(200, seed=3)
    assert many[:20] == questions(20, seed=3)
    assert many != questions(200, seed=4)
    assert len({question.prompt for question in many}) == 200


def test_questions_with_longer_answers_are_drawn_more_often() -> None:
    def mean(count: int) -> float:
        found = questions(count, seed=0)
        return sum(len(question.answer) for question in found) / len(found)

    assert mean(200) > 1.3 * mean(1200)


def test_a_file_of_questions_is_read_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"q{n}", "answer": ""}) for n in range(9)) + "\n\n")
    assert {question.prompt for question in workload.sample(from_file(file), 9, 0)} == {f"q{n}" for n in range(9)}
    with pytest.raises(ConfigError, match="only 9 different"):
        workload.sample(from_file(file), 10, 0)
    file.write_text('{"prompt": "q"}\n{"question": "q"}\n')
    with pytest.raises(ConfigError, match=r"line 2.*prompt"):
        from_file(file)
    with pytest.raises(ConfigError, match=r"missing\.jsonl"):
        from_file(tmp_path / "missing.jsonl")


# -- load


class Slow:
    """A chat server that streams the prompt's words slowly, after a null as llama-server's, and counts its clients."""

    def __init__(self) -> None:
        self.now = self.max = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][0]["content"]
        if prompt == "refused":
            raise web.HTTPServiceUnavailable
        response = web.StreamResponse()
        await response.prepare(request)
        self.now += 1
        self.max = max(self.max, self.now)
        for word in [None, *prompt.split()]:
            await asyncio.sleep(0.01)
            await response.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
        self.now -= 1
        if prompt != "cut":
            last = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
            await response.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def slow() -> AsyncIterator[tuple[Slow, HTTPClient]]:
    server, app = Slow(), web.Application()
    app.router.add_post("/v1/chat/completions", server.chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with HTTPClient(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
        yield server, client
    await runner.cleanup()


async def test_the_given_number_of_clients_asks_at_once_and_answers_are_in_the_order_of_questions(
    slow: tuple[Slow, HTTPClient],
) -> None:
    server, client = slow
    prompts = ["a " * random.Random(n).randint(1, 6) for n in range(12)]
    answers = await load(client, prompts, 3, {}, max_tokens=9)
    assert [answer.text for answer in answers] == ["a" * len(prompt.split()) for prompt in prompts]
    assert server.max == 3
    for answer in answers:
        assert 0 < answer.first_token <= answer.arrivals[-1][0] <= answer.seconds


@pytest.mark.parametrize("prompt", ["cut", "refused"])
async def test_an_answer_that_fails_fails_the_load(slow: tuple[Slow, HTTPClient], prompt: str) -> None:
    with pytest.raises(EndpointError):
        await load(slow[1], ["a", prompt, "b"], 2, {}, max_tokens=9)


def test_gaps_are_between_tokens_however_the_text_was_cut() -> None:
    assert list(token_gaps([(1.0, 3), (2.0, 4), (5.0, 1)], [2, 3, 5, 7, 8])) == [0, 1, 0, 3]
    assert list(token_gaps([(1.0, 3), (2.0, 4)], [5, 7])) == [0]  # the first token came with the second piece
    assert list(token_gaps([], [])) == []
    rng = random.Random(0)
    for _ in range(200):
        text = rng.randint(1, 40)
        ends = sorted(rng.sample(range(1, text + 1), rng.randint(1, text)))
        cuts = sorted({*rng.sample(range(1, text + 1), rng.randint(1, text)), text})
        arrivals = [(float(n), end - begin) for n, (begin, end) in enumerate(zip([0, *cuts], cuts, strict=False))]
        gaps = list(token_gaps(arrivals, ends))
        assert len(gaps) == len(ends) - 1
        assert min(gaps, default=0) >= 0
        assert sum(gaps) <= len(arrivals) - 1


# -- ratios


def test_a_ratio_of_speeds_is_that_of_the_sums_and_lies_in_its_interval() -> None:
    rng = random.Random(1)
    pairs = [Pair(n := rng.randint(5, 90), n / 200 * rng.uniform(0.8, 1.2), n, n / 100) for _ in range(50)]
    ratio = speed_ratio(pairs)
    assert ratio.value == pytest.approx(sum(p.base_seconds for p in pairs) / sum(p.seconds for p in pairs))
    assert 1.8 < ratio.low < ratio.value < ratio.high < 2.2
    assert speed_ratio(pairs) == ratio
    assert speed_ratio(pairs * 16).high < ratio.high  # more of the same: surer


def test_a_stall_in_one_question_moves_the_ratio_of_the_sums_but_not_the_typical_one() -> None:
    pairs = [Pair(10, 1, 10, 2) for _ in range(9)]
    stalled = [*pairs, Pair(10, 50, 10, 2)]
    assert typical_ratio(stalled) == typical_ratio(pairs) == 2
    assert speed_ratio(stalled).value < 1 < speed_ratio(pairs).value


def test_a_quantile_of_nothing_is_none() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0


# -- journals


class Head(msgspec.Struct, frozen=True):
    seed: int


class JournalEntry(msgspec.Struct, frozen=True):
    n: int


def test_a_journal_resumes_after_its_last_complete_entry(tmp_path: Path) -> None:
    file = tmp_path / "new" / "journal.jsonl"
    journal = Journal(file, Head(1), JournalEntry, resume=False)
    for n in range(3):
        journal.add(JournalEntry(n))
    file.write_bytes(file.read_bytes()[:-4])  # killed while it wrote
    again = Journal(file, Head(1), JournalEntry, resume=True)
    assert again.entries == [JournalEntry(0), JournalEntry(1)]
    again.add(JournalEntry(7))
    assert Journal(file, Head(1), JournalEntry, resume=True).entries == [
        JournalEntry(0),
        JournalEntry(1),
        JournalEntry(7),
    ]


def test_a_journal_is_not_mixed_with_another_experiments(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    Journal(file, Head(1), JournalEntry, resume=False)
    with pytest.raises(ConfigError, match="--resume"):
        Journal(file, Head(1), JournalEntry, resume=False)
    with pytest.raises(ConfigError, match="other options"):
        Journal(file, Head(2), JournalEntry, resume=True)
    file.write_text("not JSON\n")
    with pytest.raises(ConfigError, match="not a journal"):
        Journal(file, Head(1), JournalEntry, resume=True)


# -- counts


def test_counts_are_sums_over_labels_and_differences_are_by_field() -> None:
    def line(sample: str, engine: int, value: float) -> str:
        name, _, label = sample.partition("{")
        labels = [f'engine="{engine}"', *filter(None, [label.rstrip("}")])]
        return f"{name}{{{','.join(labels)}}} {value}\n{name}_of_another 99.0\n"

    page = "# TYPE vllm:iteration_tokens_total histogram\n" + "".join(
        line(sample, engine, 10 * n + engine) for n, sample in enumerate(SAMPLES.values()) for engine in (1, 2)
    )
    found = parsed(page)
    labelled = [name for name, sample in SAMPLES.items() if "{" in sample]
    assert labelled
    for n, (name, sample) in enumerate(SAMPLES.items()):
        assert getattr(found, name) == 20 * n + 3, sample
    another = page.replace('route="/stream"', 'route="/verify"')
    assert parsed(another).stream_seconds == 0
    assert found - found == CloudCounts()
    assert found + found - found == found
    assert parsed("") == CloudCounts()


# -- answer modes


def test_cloud_only_is_always_asked_and_an_unknown_mode_is_named() -> None:
    assert select_modes("edge,edge") == [CLOUD_ONLY, ANSWER_MODES["edge"]]
    assert {mode.name for mode in select_modes(DEFAULT_MODES)} < ANSWER_MODES.keys()
    with pytest.raises(ConfigError, match="slow"):
        select_modes("edge,slow")
