"""Recording exits: what is recorded is what transformers computes, along the model's own answers."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibration.split import records
from common.errors import ConfigError
from models.exits import record
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import Exits
from tests.support import tiny_checkpoints as tiny

EXITS = [1, 3]
LIMIT = 12


@pytest.fixture(scope="module", params=[tiny.llama, tiny.qwen2], ids=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With settings of its own for sampling, as published models have them."""
    folder: Path = request.param(tmp_path_factory.mktemp("tiny") / "model", initializer_range=0.2)
    own = {"eos_token_id": [0, 1], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "repetition_penalty": 5.0}
    (folder / "generation_config.json").write_text(json.dumps(own))
    return folder


@pytest.fixture(scope="module")
def prompts(model: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer.encode(text) for text in ("What is AI?", "Sort 31, 7, 64, then add all", "Hi", "Hi")]


def test_along_its_own_answers_every_token_is_the_models_likeliest(model: Path, prompts: list[list[int]]) -> None:
    checkpoint = Checkpoint(model)
    texts = record.answered(checkpoint, prompts, LIMIT)
    found = record.record(checkpoint, Exits(checkpoint, EXITS, None), texts)
    assert [text.ids[: text.first + 1] for text in texts] == prompts
    for number, text in enumerate(texts):
        assert found.right[found.question == number].tolist() == text.ids[text.first + 1 :]


def test_the_recorded_numbers_are_those_of_transformers(model: Path, prompts: list[list[int]]) -> None:
    checkpoint = Checkpoint(model)
    (text,) = record.answered(checkpoint, prompts[:1], LIMIT)
    found = record.record(checkpoint, Exits(checkpoint, EXITS, None), [text])
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        states = whole.model(torch.tensor([text.ids[:-1]]), output_hidden_states=True).hidden_states
        first, second = (states[exit][0, text.first :].double() for exit in EXITS)
        p, q = (whole.lm_head(whole.model.norm(at.float())).double().softmax(-1) for at in (first, second))
    assert found.token.tolist() == [each.argmax(-1).tolist() for each in (p, q)]
    for name, values in (
        ("top", [each.max(-1).values for each in (p, q)]),
        ("second", [each.topk(2).values[:, 1] for each in (p, q)]),
        ("entropy", [-(each * each.log()).sum(-1) for each in (p, q)]),
        ("overlap", [torch.zeros(len(p)), torch.minimum(p, q).sum(-1)]),
        ("saturation", [torch.zeros(len(p)), torch.cosine_similarity(first, second, dim=-1)]),
    ):
        np.testing.assert_allclose(getattr(found, name), torch.stack(values), atol=1e-4, err_msg=name)


def asked(model: Path, output: Path, **changes: object) -> Namespace:
    given = {"model": str(model), "exits": EXITS, "exits_file": None, "data": None, "questions": None}
    return Namespace(**given | {"max_tokens": LIMIT, "given_answers": False, "output": output} | changes)


def test_texts_of_a_file_are_followed_as_they_are(model: Path, tmp_path: Path) -> None:
    text, output = tmp_path / "prose.txt", tmp_path / "exits.npz"
    text.write_text("\n\n".join(f"Machine learning, part {number}." for number in range(9)))
    record.run(asked(model, output, data=text, questions=4))
    about, found = records.read(output)
    assert (about.exits, about.own_answers, about.layers, found.questions) == (EXITS, False, 5, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "--data"),
        ({"data": Path("some.jsonl"), "exits": None}, "--exits"),
        ({"data": Path("some.jsonl"), "exits": [9]}, "--exits"),
        ({"data": Path("none.txt")}, "none.txt"),
        ({"output": Path("nowhere/exits.npz"), "data": Path("some.jsonl")}, "--output"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_computed(
    model: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        record.run(asked(model, **{"output": tmp_path / "exits.npz"} | changes))
