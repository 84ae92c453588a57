"""The examples as people run them, against real servers; each shows what it promises, or says in one line why not."""

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.demo import free_ports
from examples import batch
from tests.conftest import Servers

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


async def run(example: str, edge_url: str, cloud_url: str, *flags: str) -> tuple[int, str, str]:
    environment = {
        **os.environ,
        "EDGECLOUD_COMMUNICATION__EDGE_ENDPOINT": edge_url,
        "EDGECLOUD_COMMUNICATION__CLOUD_ENDPOINT": cloud_url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES[example]),
        *flags,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def clouds_own(servers: Servers, prompt: str) -> str:
    body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 96}
    reply: dict[str, Any] = await servers.cloud.post("/v1/chat/completions", body, dict)
    text: str = reply["choices"][0]["message"]["content"]
    return text


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def figures(output: str) -> dict[str, float]:
    """What a line says in figures, by the words before them."""
    return {name: float(value) for name, value in re.findall(r"^([a-z ]+?) +([\d.]+)", output, re.MULTILINE)}


def basic_usage(output: str, own: str) -> None:
    shown = figures(output)
    assert shown["total latency"] > shown["edge latency"] > 0
    assert 0 < shown["confidence"] <= 100
    assert sum(count for name, count in shown.items() if name.startswith("tokens")) > 10


def batch_(output: str, own: str) -> None:
    answers = re.findall(r"^(\S.*)\n  (\S.*)\n  edge alone \d+%, cloud asked \d+x, \d+ ms$", output, re.MULTILINE)
    assert [prompt for prompt, _ in answers] == batch.PROMPTS
    assert len({answer for _, answer in answers}) == len(batch.PROMPTS)
    assert f"{len(batch.PROMPTS)} answers in" in output


def streaming(output: str, own: str) -> None:
    assert words(output).startswith(words(own))  # it asks for a lossless answer
    assert "How this answer came about" in output
    assert re.search(r"first token came after \d+ ms", output)


def openai_client(output: str, own: str) -> None:
    answers = {mode: (text, tokens) for mode, text, tokens in re.findall(r"(\w+): (.+)\n  tokens: (.+)\n", output)}
    assert re.fullmatch(r"\d+ edge", answers["edge_only"][1])
    assert re.fullmatch(r"\d+ cloud", answers["cloud_only"][1])
    assert output.rstrip().endswith("streamed: " + answers["collaborative"][0])


def custom_strategy(output: str, own: str) -> None:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    kept = {name: int(cells[0]) for name, *cells in lines}
    sure = {name: float(cells[-1].rstrip("%")) for name, *cells in lines}
    assert kept["margin"] <= kept["max_prob"]  # the distance to the next token is less than the probability
    assert sure["margin"] < sure["mean of both"] < sure["max_prob"]


def custom_ablation(output: str, own: str) -> None:
    rates = {name: float(rate) for name, rate in re.findall(r"^  (\w+) +([\d.]+)%  \[", output, re.MULTILINE)}
    assert rates["lenient"] < rates["baseline"] < rates["strict"] <= 100


SHOWN: dict[str, tuple[Callable[[str, str], None], str]] = {
    "basic_usage": (basic_usage, ""),
    "batch": (batch_, ""),
    "streaming": (streaming, "What is machine learning?"),
    "openai_client": (openai_client, ""),
    "custom_strategy": (custom_strategy, ""),
    "custom_ablation": (custom_ablation, ""),
}
"""What each example's output holds, and the question to which it is given the cloud's own answer."""


def test_every_example_is_tested() -> None:
    assert set(SHOWN) == set(EXAMPLES)


OWN_SERVERS = "custom_ablation"
"""It starts three pairs of its own, one after the other."""


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=[pytest.mark.long] if name == OWN_SERVERS else []) for name in SHOWN]
)
async def test_an_example_shows_what_it_promises(example: str, servers: Servers) -> None:
    check, question = SHOWN[example]
    shutil.rmtree(ROOT / "logs" / "custom-ablation", ignore_errors=True)  # an interrupted run asked other servers
    code, output, errors = await run(example, servers.edge_url, servers.cloud_url)
    assert (code, errors) == (0, "")
    check(output, await clouds_own(servers, question) if question else "")


@pytest.mark.parametrize("example", [name for name in SHOWN if name != OWN_SERVERS])
async def test_a_server_that_is_not_up_is_one_line(example: str) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in free_ports(2)]
    code, _, errors = await run(example, *urls)
    assert code == 1
    assert re.fullmatch(r"error: .*Connection refused.*\n", errors)
