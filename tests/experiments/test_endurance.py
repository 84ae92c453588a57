"""Soak, overload and timing of tenants: what their figures say of made-up runs, and a real sample of a process."""

import argparse
import asyncio
import io
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.demo import free_ports
from cli.server_process import ServerProcess
from cli.supervisor import Supervisor
from experiments import overload, soak_report, tenants
from experiments.counters import vitals
from experiments.counters.vitals import Vitals
from experiments.harness import progress
from experiments.harness.environment import environment
from experiments.harness.load import TimedAnswer
from experiments.plain_requests import BROKEN, PlainReply
from experiments.report.document import ReportFiles
from experiments.soak import longest_gap
from experiments.soak_report import AnswerTime, SoakReport


def samples(place: str, memory: Any) -> list[Vitals]:
    moments = [5.0 * n for n in range(120)]
    return [Vitals(seconds=t, place=place, memory=memory(t), files=40, threads=8) for t in moments]


def test_growth_is_that_of_an_hour_after_the_start() -> None:
    """The first third of the time, in which caches fill, does not count."""
    leaking = samples("edge", lambda seconds: 100 + seconds / 36)
    mean, slope = soak_report.growth(leaking, "memory")
    assert slope == pytest.approx(100)
    assert 100 < mean < 120
    settled = samples("edge", lambda seconds: 100 if seconds > 190 else seconds)
    assert soak_report.growth(settled, "memory")[1] == pytest.approx(0)


def test_a_gap_counts_before_the_first_text_and_after_the_last() -> None:
    def gap(*moments: float, seconds: float) -> float:
        arrivals = [(moment, 3) for moment in moments]
        return longest_gap(
            TimedAnswer(question=0, seconds=seconds, tokens=1, text="", finish_reason="stop", arrivals=arrivals)
        )

    assert gap(6.0, 6.5, seconds=7.0) == 6.0
    assert gap(1.0, 1.5, seconds=9.0) == 7.5
    assert gap(seconds=4.0) == 4.0


def test_the_report_of_a_soak_names_the_longest_stall_and_has_its_plots(tmp_path: Path) -> None:
    options = {"program": "-m experiments.soak", "clients": 8, "minutes": 10.0, "stall": 5.0}
    report = SoakReport(environment=environment(), options=options)
    report.samples = samples("edge", lambda seconds: 100.0)
    report.times = [AnswerTime(5.0, "gated", 2.0, 1.0, "", 0.0)] * 5
    report.times += [AnswerTime(10.0, "gated", 9.0, 6.0, "a", 5.0)]
    report.times += [AnswerTime(20.0, "gated", 170.0, 168.0, "the edge's model", 167.0)]
    report.times += [AnswerTime(30.0, "edge only", 9.0, 1.0, "", 0.0)] * 3
    report.answers["answered"] = 10
    document = soak_report.write(report, ReportFiles(tmp_path, soak_report.NAME))
    assert "2, the longest 168.0 s (the edge's model)" in str(document.summary[1])
    assert "1, the longest 170.0 s (the edge's model)" in str(document.summary[2])
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"soak_{name}.svg" for name in soak_report.QUANTITIES}
    assert "the edge&#39;s model" in (tmp_path / "soak_report.html").read_text()


def test_the_area_under_the_curve_is_half_where_the_clock_tells_nothing() -> None:
    chance = random.Random(1)
    hits, misses = ([chance.random() for _ in range(2000)] for _ in range(2))
    assert tenants.area(hits, misses) == pytest.approx(0.5, abs=0.03)
    assert tenants.area([1.0, 2.0], [3.0, 4.0]) == 1.0
    assert tenants.area([3.0], [3.0]) == 0.5
    assert tenants.area([4.0], [3.0]) == 0.0


def test_the_table_of_an_overload_compares_what_is_accepted_with_the_usual() -> None:
    nominal = [PlainReply(overload.ANSWERED, 1.0, 0.0)] * 20
    late = [PlainReply(overload.ANSWERED, 1.5, 0.0)] * 20 + [PlainReply(BROKEN, 0.0, 0.0)]
    late += [PlainReply(overload.REFUSED, 0.01, 0.002)] * 99 + [PlainReply(overload.REFUSED, 0.2, 0.002)]
    args = argparse.Namespace(times=10.0, nominal=8, server="edge")
    table = overload.table(args, 4.0, nominal, late, {"edge": 100.0}, {"edge": 105.0})
    cells = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert cells["95th percentile over that at capacity"] == "1.50"
    assert cells["refused within 100 ms"] == "0.990, the latest 0.200 s"
    assert cells["of these times, until they were sent"] == "0.002 s, 0.002 s"
    assert cells["other outcomes"] == "0"
    assert cells["memory, edge"] == "100 MiB, then 1.05 times"


async def test_a_servers_vitals_are_those_of_its_process(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    flags = ["--host", "127.0.0.1", "--port", str(port), "--set", "communication.cloud_endpoint=http://127.0.0.1:1"]
    url = f"http://127.0.0.1:{port}"
    server = ServerProcess("edge", "start_edge.py", url, flags, tmp_path / "edge.log")
    async with Supervisor([server], lambda _: None).running():
        found = {one.place: one for one in await asyncio.to_thread(vitals.sample, 3.0)}
    assert found["edge"].seconds == 3.0
    assert found["edge"].memory > 20
    assert found["edge"].files > 3
    assert found["edge processes"].threads >= 1


async def test_a_long_run_shows_how_much_of_it_has_passed() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    async with progress.shown(console, "soak", lambda: 0.25):
        while "25%" not in screen.getvalue():
            await asyncio.sleep(0.01)
    assert "soak" in screen.getvalue()
    assert "100%" in screen.getvalue()
