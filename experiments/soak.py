"""Asks a pair in mixed modes for long: does memory, files or threads grow, and does an answer stand still?

    python -m experiments.soak [--config FILE] [--set KEY=VALUE] [--minutes 60] [--answers N] [--clients 8]
                               [--mode NAME …] [--data FILE] [--pinned] [--output DIR]

Each client asks one question after the other, in a mode drawn anew, streamed; one of eight leaves in the middle. A
*stall* is a time without text above --stall seconds, a *slow* answer took five times its mode's median: the report
names what both waited for longest, as the answer's own report says. Growth is the slope of a line through the samples
of the last two thirds of the time.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli import terminal
from cli.args import config_parser, count, load_config, positive, run_program
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from experiments.counters.vitals import sample
from experiments.harness import load, servers
from experiments.harness.environment import environment
from experiments.harness.load import TimedAnswer
from experiments.harness.options import OUTPUT_HELP
from experiments.harness.progress import of_time, shown
from experiments.questions import datasets
from experiments.report.document import ReportFiles
from experiments.soak_report import NAME, AnswerTime, SoakReport, write

MODES: dict[str, Mapping[str, Any]] = {
    "gated": {},
    "lossless, rounds": {"use_confidence_check": False, "way": "rounds"},
    "lossless, continuous": {"use_confidence_check": False, "way": "continuous"},
    "cloud only": {"mode": "cloud_only"},
    "edge only": {"mode": "edge_only"},
    "two choices": {"n": 2, "temperature": 0.7},
    "a stop string": {"stop": ["."]},
}
LEAVES = 8
"""One of so many answers is left in the middle."""
SAMPLE_SECONDS = 5.0


async def main() -> None:
    parser = config_parser("Ask a pair in mixed modes for long; is memory flat, and does no answer stand still?")
    parser.add_argument("--minutes", type=positive, default=60.0, help="how long (default 60)")
    parser.add_argument("--answers", type=count, metavar="N", help="end before that, with so many answers")
    parser.add_argument("--clients", type=count, default=8, help="that ask at the same time (default 8)")
    parser.add_argument("--max-tokens", type=count, default=48, help="tokens of the longest answer (default 48)")
    parser.add_argument("--mode", action="append", choices=MODES, help="ask in this one only; may be given again")
    parser.add_argument("--data", metavar="FILE|NAME", help="questions (default: the demo's; other models: general)")
    parser.add_argument("--pinned", action="store_true", help="the edge has the last core, the cloud all others")
    parser.add_argument("--stall", type=positive, default=5.0, help="report so many seconds without text (default 5)")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help=OUTPUT_HELP)
    args = parser.parse_args()
    options = {name: value for name, value in vars(args).items() if name not in ("output", "set")}
    report = SoakReport(environment=environment(), options={"program": "-m experiments.soak", **options})
    config = load_config(args)
    questions = [question.prompt for question in datasets.load(datasets.spec_for(args.data, config), 200, 0).questions]
    pinning = servers.pinned_apart() if args.pinned else servers.NOT_PINNED
    async with servers.site(args, (), False, terminal.console().print, pinning=pinning) as site:
        url = site.urls[servers.AskedServer.EDGE]
        await run(report, url, questions, args)
    written = write(report, ReportFiles.at(args.output, NAME))
    for sentence in written.summary:
        terminal.console().print(str(sentence), markup=False)


async def run(report: SoakReport, url: str, questions: Sequence[str], args: argparse.Namespace) -> None:
    began, in_time = time.monotonic(), of_time(60 * args.minutes)
    answers: int = args.answers or sys.maxsize

    def passed() -> float:
        return max(in_time(), len(report.times) / answers)

    sampling = asyncio.create_task(_sample_on(report, began))
    try:
        async with shown(terminal.console(), "soak", passed), asyncio.TaskGroup() as group:
            for number in range(args.clients):
                client = _Client(report, url, questions, args, random.Random(number))
                group.create_task(client.ask_until_over(passed, began))
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def _sample_on(report: SoakReport, began: float) -> None:
    while True:
        report.samples += await asyncio.to_thread(sample, time.monotonic() - began)
        await asyncio.sleep(SAMPLE_SECONDS)


class _Client:
    """Asks one question after the other, and notes what came."""

    def __init__(
        self,
        report: SoakReport,
        url: str,
        questions: Sequence[str],
        args: argparse.Namespace,
        chance: random.Random,
    ) -> None:
        self._report, self._url, self._questions, self._chance = report, url, questions, chance
        self._max_tokens = args.max_tokens
        self._modes = args.mode or list(MODES)

    async def ask_until_over(self, passed: Callable[[], float], began: float) -> None:
        async with HTTPClient(self._url) as edge:
            while passed() < 1:
                mode = self._chance.choice(self._modes)
                outcome = await self._ask(edge, mode, began)
                self._report.answers[outcome] += 1

    async def _ask(self, edge: HTTPClient, mode: str, began: float) -> str:
        leaves = self._chance.randrange(LEAVES) == 0
        fields = {**MODES[mode], "max_tokens": self._max_tokens}
        asking = load.ask(edge, 0, self._chance.choice(self._questions), fields)
        try:
            async with asyncio.timeout(self._chance.uniform(0, 2) if leaves else None):
                answer = await asking
        except TimeoutError:
            return "left"
        except (EndpointError, RequestError) as error:
            self._report.failures[error.message] += 1
            await asyncio.sleep(0.5)
            return "failed"
        self._note(answer, mode, time.monotonic() - began)
        degraded = answer.collaboration and answer.collaboration.degraded
        return "degraded" if degraded else "answered"

    def _note(self, answer: TimedAnswer, mode: str, at: float) -> None:
        told = answer.collaboration
        what, longest = (told.waited_for, told.longest_wait_ms / 1e3) if told else ("", 0.0)
        self._report.times.append(AnswerTime(at, mode, answer.seconds, longest_gap(answer), what, longest))


def longest_gap(answer: TimedAnswer) -> float:
    """The longest time of an answer without text, in seconds."""
    moments = [0.0, *(moment for moment, _ in answer.arrivals), answer.seconds]
    return float(np.diff(moments).max())


if __name__ == "__main__":
    sys.exit(run_program(main()))
