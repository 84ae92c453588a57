"""A model in the other format computes the same: an edge's file for vLLM, a cloud's folder for llama.cpp."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.config_edge import EdgeModelConfig
from edge.llama.batch import SequenceTokens
from edge.llama.model import Llama
from models.converted import as_gguf, as_safetensors
from models.demo import CLOUD, EDGE

TOKENS = list(range(100, 148))


def by_llama(file: Path) -> torch.Tensor:
    llama = Llama(EdgeModelConfig(path=str(file), context_length=64, sequences=1))
    try:
        rows = llama.decode([SequenceTokens(0, TOKENS, len(TOKENS))])
        assert rows is not None
        return torch.from_numpy(rows.copy())
    finally:
        llama.free()


def by_torch(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return found


def distance(logits: torch.Tensor, others: torch.Tensor) -> float:
    """In units of what the logits differ among themselves; above 1 for unrelated models."""
    return float((logits - others).abs().mean() / others.std())


def test_an_edges_file_computes_the_same_as_safetensors(tmp_path: Path) -> None:
    folder = as_safetensors(EDGE, "float32", tmp_path)
    assert distance(by_llama(EDGE), by_torch(folder)) < 0.1, "llama.cpp rounds what goes into its Q8_0 matrices, too"


def test_a_clouds_folder_computes_the_same_as_a_gguf_file(tmp_path: Path) -> None:
    file = as_gguf(CLOUD, "f32", tmp_path)
    assert distance(by_llama(file), by_torch(CLOUD)) < 0.01


def test_a_conversion_is_made_once_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.converted.gguf_export.write", lambda writer, path, *rest: path.touch() or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        as_gguf(CLOUD, "f32", tmp_path)
    monkeypatch.undo()
    file = as_gguf(CLOUD, "f32", tmp_path)
    made = file.stat().st_mtime_ns
    assert as_gguf(CLOUD, "f32", tmp_path) == file and file.stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
