"""No prompt ends the process: long runs of characters under llama.cpp's pre-tokenizers, which may recurse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from benchmarks.random_gguf import VOCABULARY
from edge.llama.vocabulary import FLAT, LONGEST_RUN, SHORT

RECURSIVE = ("gpt-4o", "llama4", "tekken", "deepseek-v3", "bloom", "exaone-moe", "youtu")
"""Of each form of regular expression, one that overflows an ordinary stack."""
PROGRAM = "tests.edge.llama.tokenize_runs"


def vocabulary_file(path: Path, pre: str) -> Path:
    """The demo edge's tokens under another pre-tokenizer, without a model."""
    source = gguf.GGUFReader(VOCABULARY)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(source.fields["tokenizer.ggml.tokens"].contents())
    writer.add_token_types(source.fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(source.fields["tokenizer.ggml.merges"].contents())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def counts(path: Path, length: int, *units: str) -> dict[str, int | None]:
    """What the program prints; it fails if llama.cpp ends it."""
    command = [sys.executable, "-m", PROGRAM, str(path), str(length), *units]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, f"the process ended with {done.returncode}"
    found: dict[str, int | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("pre", RECURSIVE)
def test_a_recursive_pre_tokenizer_takes_the_longest_run_and_refuses_a_longer_one(tmp_path: Path, pre: str) -> None:
    path = vocabulary_file(tmp_path / "vocabulary.gguf", pre)
    assert None not in counts(path, LONGEST_RUN).values()
    assert set(counts(path, LONGEST_RUN + 2, "a", " ", "a ").values()) == {None}


@pytest.mark.parametrize("pre", sorted(FLAT))
def test_a_pre_tokenizer_without_recursion_takes_any_run(tmp_path: Path, pre: str) -> None:
    assert None not in counts(vocabulary_file(tmp_path / "vocabulary.gguf", pre), 4 * LONGEST_RUN).values()


def test_a_short_text_needs_no_stack_of_its_own(tmp_path: Path) -> None:
    for pre in RECURSIVE:
        assert None not in counts(vocabulary_file(tmp_path / f"{pre}.gguf", pre), SHORT // 4).values()
