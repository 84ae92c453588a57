"""A split model on the command line: alone, with a cloud, and with an unreachable one."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from rich.console import Console

from cli import split as split_program
from cli.split import SplitQuestion
from common import config
from common.config_schema import Config
from common.errors import ConfigError, ContextLengthError, RequestError
from common.types import GREEDY, Collaboration, Sampling
from edge.split.engine import EdgeInferenceEngine
from tests.end_to_end.test_programs import run
from tests.support.split.split_parts import WholeModel, served

pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "Sort 31, 7, 64."
NOWHERE = "communication.cloud_endpoint=http://127.0.0.1:1"


def made(manifest: Path, *flags: str) -> Config:
    return config.load(flags=[f"edge.split.manifest={manifest}", *flags], environment={})


async def asked(settings: Config, standalone: bool, threshold: float, **more: Any) -> tuple[str, Collaboration]:
    """The printed text, without colours, and the report."""
    shown = io.StringIO()
    console = Console(file=shown, width=120, highlight=False, markup=False)
    question = SplitQuestion(QUESTION, GREEDY, standalone=standalone, threshold=threshold, **more)
    report = await split_program.ask(settings, question, console)
    return shown.getvalue(), report


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cloud_url(demo_split: Path) -> AsyncIterator[str]:
    async with served(demo_split) as (server, _):
        yield f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.01])
async def test_alone_it_prints_what_generate_standalone_gives_and_counts_its_exits(
    demo_split: Path, threshold: float
) -> None:
    settings = made(demo_split, NOWHERE, f"edge.split.thresholds=[{threshold}]")
    async with EdgeInferenceEngine(settings) as engine:
        wanted = await engine.generate_standalone(QUESTION)
    for stream in (False, True):
        shown, report = await asked(settings, True, threshold, stream=stream)
        assert shown.startswith(wanted.text)
        assert report.exits == wanted.collaboration.exits
        assert report.cloud_calls == report.bytes_up == 0
        for layer, count in report.exits.items():
            assert re.search(rf"exit after {layer} layers\W+{count} tokens", shown)


async def test_with_a_cloud_and_all_exits_disabled_it_is_the_whole_models_answer(
    demo_split: Path, cloud_url: str
) -> None:
    settings = made(demo_split, f"communication.cloud_endpoint={cloud_url}", "edge.split.deadline_ms=60000")
    shown, report = await asked(settings, False, 1.01, max_tokens=6)
    whole = WholeModel()
    ids = whole.tokens(f"<|user|>{QUESTION}<|assistant|>")
    begin = len(ids)
    for _ in range(report.tokens["cloud"]):
        ids.append(whole.likeliest(ids)[0])
    assert report.lossless and report.cloud_calls == report.tokens["cloud"] > 0
    assert shown.startswith(whole.text(ids[begin:]))
    assert re.search(rf"cloud calls\W+{report.cloud_calls} ", shown)
    assert f"{report.bytes_up}, {report.bytes_down}" in shown


async def test_without_a_cloud_the_last_exit_answers_and_the_table_says_so(demo_split: Path) -> None:
    shown, report = await asked(made(demo_split, NOWHERE), False, 1.01, max_tokens=6)
    assert report.degraded and "degraded" in shown
    assert "lossy" in shown and "takes every token that is left" in " ".join(shown.split())
    assert report.exits["4"] > 0 and report.tokens["cloud"] == 0


async def test_invalid_thresholds_and_prompts_are_refused(demo_split: Path) -> None:
    settings = made(demo_split, NOWHERE)
    for threshold in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="--threshold must be 0 or more"):
            await asked(settings, True, threshold)
    with pytest.raises(ConfigError, match="--max-tokens must be 1 or more, not 0"):
        await asked(settings, True, 0.8, max_tokens=0)
    hot = SplitQuestion(QUESTION, Sampling(temperature=-1.0), standalone=True)
    with pytest.raises(ConfigError, match="--temperature must be from 0 to 2, not -1"):
        await split_program.ask(settings, hot, Console(quiet=True))
    for prompt, error in (("  ", RequestError), ("word " * 2000, ContextLengthError)):
        with pytest.raises(error):
            await split_program.ask(settings, SplitQuestion(prompt, GREEDY, standalone=True), Console(quiet=True))


async def test_the_program_answers_alone_without_any_server(demo_split: Path) -> None:
    words = ["--mode", "standalone", "--temperature", "0", "--prompt", QUESTION]
    code, output, errors = run("main.py", *words, "--set", f"edge.split.manifest={demo_split}")
    assert code == 0, errors
    assert "\nSorted: " in output and "exit after 2 layers" in output
    code, _, errors = run("main.py", "--mode", "standalone", "--cloud-server")
    assert code == 2 and "not allowed with" in errors


@pytest.mark.parametrize("mode", ["split", "collaborative"])
async def test_split_and_its_older_name_answer_with_the_cloud_that_has_the_last_layers(
    mode: str, demo_split: Path, cloud_url: str
) -> None:
    words = ["--mode", mode, "--temperature", "0", "--prompt", QUESTION, "--threshold", "1.01", "--max-tokens", "6"]
    words += ["--set", f"edge.split.manifest={demo_split}", "--set", f"communication.cloud_endpoint={cloud_url}"]
    code, output, errors = await asyncio.to_thread(run, "main.py", *words, "--set", "edge.split.deadline_ms=60000")
    assert (code, errors) == (0, "")
    assert re.search(r"mode +│ +split", output) and "degraded" not in output
    assert re.search(r"cloud calls\W+6 ", output)
