"""Peers run the pair's models with the cloud's own settings, and none of this project's plugin. Nothing is started."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.setup import peer
from cli.args import load_config
from common.config_schema import Config
from common.errors import StartError


def config(*settings: str) -> Config:
    return load_config(argparse.Namespace(config=None, set=["cloud.model.dtype=float32", *settings]))


def value(command: list[str], flag: str) -> str:
    """Of `--flag=value`, or of `--flag value`."""
    (found,) = [n for n, word in enumerate(command) if word.partition("=")[0] == flag]
    return command[found].partition("=")[2] or command[found + 1]


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(peer, "CONVERTED", tmp_path)
    return tmp_path


def test_vllm_speculates_by_itself_with_the_clouds_model_and_settings() -> None:
    made = config("cloud.draft_verifier.batch.max_batch_size=48", "cloud.engine_args.kv_cache_memory_bytes=67108864")
    command = peer.ngram(made, 9000)
    assert json.loads(value(command, "--speculative-config"))["method"] == "ngram"
    assert value(command, "--max-num-seqs") == "48"
    assert (value(command, "--dtype"), value(command, "--kv-cache-memory-bytes")) == ("float32", "67108864")
    assert value(command, "--port") == "9000"
    assert not any("vllm_plugin" in word or "scheduler" in word for word in command)


def test_the_draft_model_is_the_edges_in_a_format_that_vllm_reads(converted: Path) -> None:
    speculation = json.loads(value(peer.draft_model(config(), 9000), "--speculative-config"))
    assert speculation["method"] == "draft_model"
    folder = Path(speculation["model"])
    assert folder.parent == converted
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_llama_server_gets_both_models_and_as_many_slots_as_the_cloud_has_places(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "LLAMA_SERVER", converted / "llama-server")
    made = config("cloud.draft_verifier.batch.max_batch_size=6")
    with pytest.raises(StartError, match="make llama-server"):
        peer.llama_server(made, 9000)
    (converted / "llama-server").touch()
    command = peer.llama_server(made, 9000)
    assert Path(value(command, "--model")).parent == converted and value(command, "--model").endswith("-f32.gguf")
    assert value(command, "--model-draft").endswith("demo-edge.gguf")
    assert (value(command, "--parallel"), value(command, "--ctx-size")) == ("6", "6144")
