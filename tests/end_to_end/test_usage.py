"""docs/USAGE.md: every snippet runs as it stands there, but for the addresses of the servers."""

import ast
import asyncio
import functools
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from cloud.engine.engine import CloudEngine
from common import config
from common.http.client import HTTPClient
from edgecloud.commands import root_parser
from tests.conftest import Servers

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "USAGE.md").read_text(), re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
YAML = [text for language, text in BLOCKS if language == "yaml"]
COMMANDS = [
    shlex.split(line, comments=True) for language, text in BLOCKS if language == "bash" for line in text.splitlines()
]
PROGRAMS = [words for words in COMMANDS if words[0] == "python"]
NEEDS_VLLM = [text for text in PYTHON if "DraftVerifier" in text]

EXPECTED: dict[str, Callable[[Any], object]] = {
    "should_accept": lambda accepted: accepted is True,
    "score": lambda score: score == pytest.approx(0.9),
    "individual": lambda scores: len(scores) == 3,
    "verify_response": lambda response: response.drafted == 10 and 0 <= response.acceptance_rate <= 1,
    "cache_data": lambda cached: cached.token_ids == [100, 101] and cached.available_tokens == 64,
    "blocks": lambda blocks: len(set(blocks)) == 5,
    "results": lambda results: len(results) == 3 and all(result.text for result in results),
    "stats": lambda stats: stats["total_requests"] == 1 and stats["avg_latency_ms"] > 0,
}
"""What a snippet's variables hold when it has run."""


async def run(snippet: str) -> dict[str, Any]:
    """Runs Python as a person would: with `await` at the top as in `python -m asyncio`, else as a program."""
    names: dict[str, Any] = {}
    if "asyncio.run(" in snippet:
        await asyncio.to_thread(exec, compile(snippet, "USAGE.md", "exec"), names)
    else:
        code = compile(snippet, "USAGE.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        awaited = eval(code, names)
        if inspect.isawaitable(awaited):
            await awaited
    return names


def check(names: dict[str, Any]) -> None:
    for name in EXPECTED.keys() & names.keys():
        assert EXPECTED[name](names[name]), f"{name} is {names[name]}"


def test_every_expectation_is_about_a_snippet() -> None:
    for name in EXPECTED:
        assert any(re.search(rf"\b{name}\b.* =", snippet) for snippet in PYTHON)


@pytest.mark.parametrize("snippet", [text for text in PYTHON if text not in NEEDS_VLLM])
async def test_python_runs_as_it_stands(snippet: str, servers: Servers, capsys: pytest.CaptureFixture[str]) -> None:
    here = snippet.replace("EdgeCloudHTTPClient()", f"EdgeCloudHTTPClient({servers.edge_url!r}, {servers.cloud_url!r})")
    here = here.replace("http://localhost:8080", servers.edge_url)
    check(await run(here))
    assert capsys.readouterr().out.count("\n") >= snippet.count("print(")


@pytest.mark.parametrize("snippet", NEEDS_VLLM)
async def test_python_with_models_of_its_own_runs_as_it_stands(
    snippet: str, cloud_engine: CloudEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines are real; the cloud's is one that runs already, as a second start would only cost time."""

    async def start(self: CloudEngine) -> None:
        self._llm = cloud_engine._llm

    async def close(self: CloudEngine) -> None:
        self._llm = None

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(CloudEngine, "start", start)
    monkeypatch.setattr(CloudEngine, "close", close)
    check(await run(snippet))
    assert re.search(r"rate: \d+\.\d\d%", capsys.readouterr().out)


@pytest.mark.parametrize("text", YAML)
def test_yaml_is_a_config(text: str) -> None:
    tree = yaml.safe_load(text)
    assert holds(msgspec.to_builtins(config.check(tree), enc_hook=repr), tree)


def holds(whole: Any, part: Any) -> bool:
    """Whether all that `part` says is in `whole` too."""
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part or whole == "***")  # secrets show themselves so


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_programs_have_the_flags_that_are_shown(words: list[str]) -> None:
    _, script, *arguments = words
    assert (ROOT / script).exists()
    shown = options(script) if arguments else []  # an example without any has no help, and would run
    for argument in arguments:
        if argument.startswith("--"):
            assert argument in shown
    if "--mode" in arguments:
        assert arguments[arguments.index("--mode") + 1] in shown
    if "--config" in arguments:
        assert (ROOT / arguments[arguments.index("--config") + 1]).exists()


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "edgecloud"], ids=" ".join)
def test_the_command_takes_what_is_shown(words: list[str]) -> None:
    assert root_parser([words[1]]).parse_args(words[1:]).command == words[1]


@functools.cache
def options(script: str) -> list[str]:
    """The words of a program's help."""
    said = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, text=True, capture_output=True, timeout=120, check=True
    )
    return re.findall(r"[\w-]+", said.stdout)


@pytest.mark.parametrize("words", [words for words in PROGRAMS if "client" in words], ids=" ".join)
async def test_the_client_answers_as_shown(words: list[str], servers: Servers) -> None:
    endpoints = {"EDGE_ENDPOINT": servers.edge_url, "CLOUD_ENDPOINT": servers.cloud_url}
    environment = {**os.environ, **{f"EDGECLOUD_COMMUNICATION__{name}": url for name, url in endpoints.items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words[1:], cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert "How this answer came about" in said.decode()


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "curl"], ids=" ".join)
async def test_addresses_answer(words: list[str], servers: Servers) -> None:
    here = {"http://localhost:8080": servers.edge_url, "http://localhost:8081": servers.cloud_url}
    usual, _, path = next(word for word in words if "://" in word).removeprefix("http://").partition("/")
    address = f"{here['http://' + usual]}/{path}"
    data = words[words.index("-d") + 1] if "-d" in words else None
    headers = {"Content-Type": "application/json"} if data else {}
    async with (
        HTTPClient(address) as client,
        client.session().request("POST" if data else "GET", address, data=data, headers=headers) as response,
    ):
        assert response.status == 200
        assert await response.text()


def test_make_has_the_targets_that_are_shown() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in COMMANDS:
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)
