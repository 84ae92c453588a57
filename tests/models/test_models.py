"""The demo models: what they are trained on, what is held out, and that both engines read the same vocabulary."""

import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from calibration import data
from common.config_edge import EdgeModelConfig
from edge.engine.engine import EdgeEngine
from models import heldout
from models.corpus import questions as corpus
from models.corpus import tasks

MODELS = Path(__file__).parents[2] / "models"
PROMPTS_IN_THE_DOCUMENTS = (
    "What is AI?",
    "What is artificial intelligence?",
    "What is machine learning?",
    "Explain quantum computing",
    "Explain deep learning",
    "What is the capital of France?",
)


@pytest.fixture
async def engine() -> AsyncIterator[EdgeEngine]:
    async with EdgeEngine(EdgeModelConfig(path=str(MODELS / "demo-edge.gguf"), sequences=1)) as made:
        yield made


def wordings() -> set[str]:
    """Every training wording of every fact under each of its names."""
    kinds = corpus.kinds()
    return {w.format(x=name) for f in corpus.facts() for w in kinds[f.kind]["train"] for name in f.names}


def test_there_are_at_least_600_facts_in_several_wordings_each() -> None:
    assert len(corpus.facts()) >= 600
    assert all(len(kind["train"]) >= 6 and kind["held_out"] for kind in corpus.kinds().values())


def test_the_prompts_of_the_documents_are_trained_on() -> None:
    assert set(PROMPTS_IN_THE_DOCUMENTS) <= wordings()


def test_nothing_held_out_is_trained_on() -> None:
    held_out = {prompt for _, prompt, _ in corpus.held_out_pairs()}
    assert not held_out & wordings()
    trained = itertools.islice(corpus.training_pairs(seed=3, task_share=1.0), 20_000)
    assert not any(tasks.is_held_out(answer) for _, answer in trained)


@pytest.mark.parametrize("kind", list(tasks.TASKS))
def test_held_out_tasks_are_about_a_tenth_of_all(kind: str) -> None:
    rng = Random(0)
    share = sum(tasks.is_held_out(tasks.TASKS[kind](rng)[1]) for _ in range(2000)) / 2000
    assert 0.02 < share < 0.3


async def test_both_engines_read_the_same_token_ids(engine: EdgeEngine) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MODELS / "demo-cloud")
    texts = [f"<|user|>{p}<|assistant|>{a}<|end|>" for _, p, a in corpus.held_out_pairs()]
    for text in [*texts, "naïve café 東京 🙂 12,345", "  two  spaces\n\nlines\t"]:
        assert engine.tokenize(text, parse_special=True) == tokenizer.encode(text)


async def test_both_sides_carry_the_same_chat_template(engine: EdgeEngine) -> None:
    assert engine.chat_template == (MODELS / "demo-cloud" / "chat_template.jinja").read_text()


def test_the_weights_are_small_enough_for_git() -> None:
    committed = [*(MODELS / "demo-cloud").iterdir(), *MODELS.glob("demo-*.*")]
    assert sum(path.stat().st_size for path in committed) < 30e6


def test_the_held_out_questions_can_be_calibrated_with_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "held-out.jsonl"
    command = [sys.executable, "-m", "models.heldout", "--per-kind", "2"]
    path.write_bytes(subprocess.run(command, cwd=MODELS.parent, capture_output=True, check=True).stdout)
    questions = data.read(path)
    assert [(q.prompt, q.answer) for q in questions] == [pair[1:] for pair in heldout.pairs(per_kind=2)]
    assert len(heldout.pairs()) == len(corpus.held_out_pairs())
