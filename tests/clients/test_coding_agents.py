"""Command lines of coding agents, unmodified, against an edge alone with Qwen2.5-Coder 1.5B: one tool round trip each.

The demo models write no code and choose no tool, so that an agent needs a real model; its GGUF is where real pairs are.
The agents' own instructions are shortened by their settings: a model of this size on a CPU reads about 100 tokens/s.
"""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession, ClientTimeout, web
from aiohttp.test_utils import TestServer

from cli.demo import free_ports
from cli.server_process import ServerProcess
from common.files.installation import PROJECT
from tests.clients.client_programs import NODE_MODULES, run_client
from tests.real.real_models import ROOT, SAME

FILE = "qwen2.5-coder-1.5b.gguf"
NEEDED = f"{FILE} is not in {ROOT}; EDGECLOUD_REAL names another folder"
LIMIT = 1200
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not (ROOT / FILE).exists(), reason=NEEDED),
    pytest.mark.timeout(2 * LIMIT),
]
SECRET = "swordfish"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def coder_url() -> AsyncIterator[str]:
    """An edge that answers alone, with room for the instructions of an agent."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    settings = [
        f"models.root={ROOT}",
        f"edge.model.local={FILE}",
        "edge.model.context_length=12288",
        "edge.model.sequences=2",
    ]
    settings += ["inference.mode=edge_only", "communication.cloud_endpoint=http://127.0.0.1:1"]
    flags = ["--config", SAME, "--host", "127.0.0.1", "--port", str(port)]
    flags += [word for setting in settings for word in ("--set", setting)]
    process = ServerProcess("edge", "start_edge.py", url, flags, PROJECT / "logs" / "edge-coder.log")
    try:
        await process.start()
        await process.wait_ready()
        yield url
    finally:
        await process.stop()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A repository with a program and a note."""
    (tmp_path / "greet.py").write_text('def greet():\n    return "hello"\n')
    (tmp_path / "note.txt").write_text(f"The password is {SECRET}.\n")
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "Start"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_llm_calls_a_tool_by_itself(coder_url: str, tmp_path: Path) -> None:
    model = {"model_id": "coder", "model_name": "edge", "api_base": coder_url + "/v1", "supports_tools": True}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    tool = 'def multiply(x: int, y: int) -> int:\n    """Multiply two numbers."""\n    return x * y'
    flags = ["-m", "coder", "-o", "temperature", "0", "--functions", tool, "--td", "--chain-limit", "3"]
    question = "What is 34234 times 213345? Use the tool multiply."
    environment = {"LLM_USER_PATH": str(tmp_path)}
    command = ["llm", *flags, question]
    shown = run_client("clients", *command, home=tmp_path, more=environment, limit=LIMIT)
    assert "7303652730" in shown.replace(",", "")


def test_aider_edits_a_file(coder_url: str, scratch: Path) -> None:
    flags = ["--model", "openai/edge", "--openai-api-base", coder_url + "/v1", "--edit-format", "whole"]
    flags += ["--map-tokens", "0", "--yes-always", "--no-check-update", "--analytics-disable", "--no-detect-urls"]
    flags += ["--no-show-model-warnings", "--no-show-release-notes", "--no-suggest-shell-commands", "--no-gitignore"]
    wish = 'Change greet.py so that greet returns "goodbye" instead of "hello".'
    run_client("aider", "aider", *flags, "--message", wish, "greet.py", home=scratch, limit=LIMIT)
    assert "goodbye" in (scratch / "greet.py").read_text()


@asynccontextmanager
async def that_must_call(url: str) -> AsyncIterator[str]:
    """In front of `url`: the first answer must be a call, since a model of this size writes Codex's as text."""

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not any(item.get("type") == "function_call_output" for item in body["input"]):
            body["tool_choice"] = "required"
        patient = ClientTimeout(total=LIMIT)
        async with ClientSession(timeout=patient) as session, session.post(url + request.path, json=body) as answer:
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            async for data in answer.content.iter_any():
                await response.write(data)
            return response

    app = web.Application(client_max_size=2**24)
    app.router.add_post("/v1/responses", forward)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_codex_runs_a_command(coder_url: str, scratch: Path) -> None:
    async with that_must_call(coder_url) as url:
        shown = await asyncio.to_thread(codex, url, scratch)
    items = [event["item"] for line in shown.splitlines() if (event := json.loads(line)).get("item")]
    assert any(item["type"] == "command_execution" and SECRET in item.get("aggregated_output", "") for item in items)


def codex(url: str, scratch: Path) -> str:
    """What it prints about its work, as JSON lines."""
    home = scratch / ".codex"
    home.mkdir()
    (home / "instructions.md").write_text("You are a coding agent. Run commands with the tool exec_command.")
    provider = {"name": "edge", "base_url": url + "/v1", "wire_api": "responses"}
    provider_lines = [f"{key} = {json.dumps(value)}" for key, value in provider.items()]
    (home / "config.toml").write_text(
        f'model = "edge"\nmodel_provider = "edge"\nmodel_instructions_file = "{home / "instructions.md"}"\n'
        'web_search = "disabled"\ninclude_permissions_instructions = false\nskills.include_instructions = false\n'
        "[model_providers.edge]\n" + "\n".join([*provider_lines, "stream_idle_timeout_ms = 1200000"]) + "\n"
    )
    off = [word for feature in ("multi_agent", "goals", "apps", "plugins") for word in ("--disable", feature)]
    program = str(NODE_MODULES / "@openai" / "codex" / "bin" / "codex.js")
    wish = "Run this command with the tool exec_command: cat note.txt"
    flags = ["--skip-git-repo-check", "--json", "-s", "danger-full-access", *off]
    return run_client("clients", "node", program, "exec", *flags, wish, home=scratch, limit=LIMIT)


def test_claude_code_reads_a_file(coder_url: str, scratch: Path) -> None:
    (binary,) = (NODE_MODULES / "@anthropic-ai").glob("claude-code-*/claude")
    environment = {"ANTHROPIC_BASE_URL": coder_url, "ANTHROPIC_API_KEY": "none", "API_TIMEOUT_MS": str(LIMIT * 1000)}
    environment["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
    flags = ["-p", "--bare", "--model", "edge", "--tools", "Read", "--allowedTools", "Read", "--max-turns", "3"]
    flags += ["--output-format", "stream-json", "--verbose"]
    wish = f"Use the tool Read to read the file {scratch / 'note.txt'}, then tell me the password."
    shown = run_client("clients", str(binary), *flags, wish, home=scratch, more=environment, limit=LIMIT)
    events = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    results = [event["message"]["content"] for event in events if event["type"] == "user"]
    assert any(SECRET in json.dumps(result) for result in results)
