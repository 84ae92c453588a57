"""Training of exits: they learn, the model does not change, an interrupted training ends with the same weights."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from common.errors import ConfigError
from common.protocol.split_manifest import read_manifest
from models import demo
from models.exits import heads as exit_heads
from models.exits import own_answers, temperatures, translators
from models.exits import texts as exit_texts
from models.exits import training as exit_training
from models.exits.early_exit import FrozenStates
from models.exits.evaluation import ExitTrace, apply_threshold
from models.exits.heads import EarlyExitLLM, train_early_exit_heads
from models.exits.layerwise_states import LayerwiseStates
from models.exits.states import StateFiles, compute
from models.exits.temperatures import fit_temperatures
from models.exits.texts import TokenizedText
from models.exits.training import ExitRecipe
from models.exits.translators import TranslatedExits
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import Exits
from models.partition.partition import partition as cut
from tests.support import tiny_checkpoints as tiny

SMALL = {"vocab_size": 4096, "num_hidden_layers": 3}
RECIPE = ExitRecipe(epochs=2, rate=3e-3, positions=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With several threads the order of sums depends on the load; here results are compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llama(tmp_path_factory.mktemp("tiny") / "model", **SMALL)


@pytest.fixture
def base(checkpoint: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)


@pytest.fixture
def texts() -> list[TokenizedText]:
    """Random texts of many lengths: the whole model's predictions on them can be learned like any others."""
    rng = np.random.default_rng(0)
    return [
        TokenizedText(rng.integers(1, 400, rng.integers(12, 40)).tolist(), int(rng.integers(0, 9))) for _ in range(40)
    ]


def states_of(model: EarlyExitLLM, texts: list[TokenizedText], folder: Path) -> StateFiles:
    return StateFiles(folder, partial(compute, model), texts, lambda count: None)


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_lowers_the_validation_loss_of_every_exit(
    base: LlamaForCausalLM, texts: list[TokenizedText], tmp_path: Path
) -> None:
    model = EarlyExitLLM(base, [1, 2])
    validation = states_of(model, texts[30:], tmp_path / "validation")
    before = exit_heads.validation_losses(model, validation.batches(64))
    exit_training.train(model, states_of(model, texts[:30], tmp_path / "training"), RECIPE, tmp_path, lambda _: None)
    after = exit_heads.validation_losses(model, validation.batches(64))
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_training_does_not_change_the_model(base: LlamaForCausalLM, texts: list[TokenizedText], tmp_path: Path) -> None:
    model = EarlyExitLLM(base, [1, 2])
    whole, heads = bits(base), bits(model.exit_heads)
    exit_training.train(model, states_of(model, texts, tmp_path / "states"), RECIPE, tmp_path, lambda _: None)
    assert same(bits(base), whole)
    assert not any(torch.equal(tensor, heads[name]) for name, tensor in bits(model.exit_heads).items())


class Interrupted(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_weights(
    base: LlamaForCausalLM, texts: list[TokenizedText], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_training, "CHECKPOINT_STEPS", 3)
    unbroken = EarlyExitLLM(base, [1, 2])
    states = states_of(unbroken, texts, tmp_path / "states")
    (tmp_path / "whole").mkdir()
    exit_training.train(unbroken, states, RECIPE, tmp_path / "whole", lambda _: None)

    (tmp_path / "broken").mkdir()
    seen: list[int] = []
    for last in (5, 11):  # between two checkpoints

        def interrupt(progress: exit_training.TrainingProgress, last: int = last) -> None:
            if progress.step == last:
                raise Interrupted

        with pytest.raises(Interrupted):
            exit_training.train(EarlyExitLLM(base, [1, 2]), states, RECIPE, tmp_path / "broken", interrupt)
    resumed = EarlyExitLLM(base, [1, 2])
    exit_training.train(resumed, states, RECIPE, tmp_path / "broken", lambda progress: seen.append(progress.step))
    assert seen[0] == 9
    assert same(bits(resumed.exit_heads), bits(unbroken.exit_heads))


def test_only_the_seed_decides_the_order(base: LlamaForCausalLM, texts: list[TokenizedText], tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate([0, 0, 1]):
        model = EarlyExitLLM(base, [1])
        folder = tmp_path / str(number)
        states = states_of(model, texts, folder)
        exit_training.train(model, states, ExitRecipe(1, 1e-3, 64, seed), folder, lambda _: None)
        found.append(bits(model.exit_heads))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_states_do_not_depend_on_the_batching_of_texts(base: LlamaForCausalLM, texts: list[TokenizedText]) -> None:
    model = EarlyExitLLM(base, [1, 2])
    together = compute(model, texts)
    alone = [compute(model, [text]) for text in sorted(texts, key=lambda text: len(text.ids))]
    torch.testing.assert_close(together.exits, torch.cat([each.exits for each in alone], dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.last, torch.cat([each.last for each in alone]), rtol=1e-4, atol=1e-4)
    assert len(together.last) == sum(len(text.ids) - 1 - text.first for text in texts)


def test_an_exit_begins_as_the_models_own_norm_and_head(base: LlamaForCausalLM) -> None:
    model = EarlyExitLLM(base, [1, 2])
    ids = torch.arange(20)[None]
    with torch.no_grad():
        states = base(ids, output_hidden_states=True).hidden_states
        for exit, logits in zip([1, 2], model(model.states(ids)), strict=True):
            torch.testing.assert_close(logits, base.lm_head(base.model.norm(states[exit]))[0])


def test_on_a_cpu_with_bfloat16_the_states_are_nearly_those_of_float32(
    checkpoint: Path, texts: list[TokenizedText], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu", torch.float32)(texts[:9])
    monkeypatch.setattr(Checkpoint, "fast_dtype", torch.bfloat16)
    fast = LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu")(texts[:9])
    for rounded, wanted in zip(fast.exits.float(), exact.exits, strict=True):
        assert 1e-3 < (rounded - wanted).norm() / wanted.norm() < 2e-2
    again = LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu", torch.float32)(texts[:9])
    assert torch.equal(again.exits, exact.exits), "what is recorded is always computed in float32"


def test_layer_by_layer_the_states_are_the_whole_models(
    checkpoint: Path, base: LlamaForCausalLM, texts: list[TokenizedText]
) -> None:
    found = LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu")(texts[:9])
    wanted = compute(EarlyExitLLM(base, [1, 2]), texts[:9])
    torch.testing.assert_close(found.exits.float(), wanted.exits, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found.last.float(), wanted.last, rtol=1e-2, atol=1e-2)
    logits = base.lm_head(wanted.last).detach().log_softmax(-1)
    assert found.likeliest is not None and found.log_probs is not None
    assert (found.likeliest[:, 0] == logits.argmax(-1)).all()
    torch.testing.assert_close(found.log_probs, logits.topk(found.log_probs.shape[1]).values, rtol=1e-3, atol=1e-3)


def test_least_squares_find_an_affine_map_and_folding_keeps_it(checkpoint: Path) -> None:
    exits = TranslatedExits(Checkpoint(checkpoint), [1])
    draw = torch.Generator().manual_seed(0)
    states = 3 + torch.randn(4000, 64, generator=draw) * torch.logspace(-1, 2, 64)
    weight = torch.randn(64, 64, generator=draw) / states.std(0)
    last = (states @ weight.T + 2) * exits.norm
    parts = zip(states.split(900), last.split(900), strict=True)
    exits.fit([FrozenStates(part[None], wanted) for part, wanted in parts])
    translator = exits.exit_heads["1"]
    found = translator(states[:50]).detach()
    torch.testing.assert_close(found, (last / exits.norm)[:50], rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        torch.nn.functional.linear(states[:50], *translator.folded()), found, atol=1e-3, rtol=1e-3
    )


def test_a_translators_loss_over_a_sample_of_the_vocabulary_is_near_that_over_all_of_it(
    checkpoint: Path, texts: list[TokenizedText], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu")(texts)
    exits = TranslatedExits(Checkpoint(checkpoint), [1, 2])
    with torch.no_grad():
        exact = torch.stack(exits.losses(states))
        torch.testing.assert_close(torch.stack(exits.training_losses(states)), exact)  # the sample is all the rest
        monkeypatch.setattr(translators, "SAMPLE", 256)
        torch.testing.assert_close(torch.stack(exits.training_losses(states)), exact, rtol=0.05, atol=0.0)


def test_training_lowers_the_loss_of_every_translator_below_that_of_least_squares(
    checkpoint: Path, texts: list[TokenizedText], tmp_path: Path
) -> None:
    exits = TranslatedExits(Checkpoint(checkpoint), [1, 2])
    states = StateFiles(tmp_path, LayerwiseStates(Checkpoint(checkpoint), [1, 2], "cpu"), texts, lambda count: None)
    losses = [exit_heads.validation_losses(exits, states.batches(64))]
    exits.fit(states.batches(64))
    losses.append(exit_heads.validation_losses(exits, states.batches(64)))
    exit_training.train(exits, states, RECIPE, tmp_path, lambda _: None)
    losses.append(exit_heads.validation_losses(exits, states.batches(64)))
    assert all(first > second > third for first, second, third in zip(*losses, strict=True))


def test_the_training_loop_takes_batches_of_tokens_as_the_documents_show_it(base: LlamaForCausalLM) -> None:
    model = EarlyExitLLM(base_model=base, early_exit_layers=[1, 2], hidden_size=64, vocab_size=4096)
    ids = torch.arange(1, 97).reshape(4, 24)
    padded: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids % 24 < 20).long()}
    optimizer = torch.optim.Adam(model.exit_heads.parameters(), lr=1e-3)
    seen: list[list[float]] = []
    train_early_exit_heads(model, [padded, ids], optimizer, num_epochs=3, watch=lambda _, losses: seen.append(losses))
    assert len(seen) == 6
    assert all(last < first for first, last in zip(seen[0], seen[-2], strict=True))


@pytest.mark.parametrize(
    ("exits", "shape"), [([0], {}), ([3], {}), ([1], {"hidden_size": 65}), ([1], {"vocab_size": 9})]
)
def test_exits_and_shapes_that_do_not_fit_the_model_are_refused(
    base: LlamaForCausalLM, exits: list[int], shape: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="the model has"):
        EarlyExitLLM(base, exits, **shape)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}."} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("form", "tensors"),
    [
        ("head", {"norm.weight": torch.bfloat16, "head.weight": torch.bfloat16}),
        ("translator", {"translator.weight": torch.float32, "translator.bias": torch.float32}),
    ],
)
def test_partition_uses_the_trained_exits(
    checkpoint: Path, data: Path, tmp_path: Path, form: str, tensors: dict[str, torch.dtype]
) -> None:
    output = tmp_path / "exits.safetensors"
    exit_heads.train(str(checkpoint), [1, 2], [data], form, RECIPE, output)
    written = load_file(output)
    exits = Exits(Checkpoint(checkpoint), [1, 2], output)
    tensors = tensors | {"temperature": torch.float32, "confident": torch.float32}
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        f"exit.{exit}.{name}": dtype for exit in (1, 2) for name, dtype in tensors.items()
    }
    cut(str(checkpoint), None, output, "f32", tmp_path / "split")
    manifest = read_manifest(tmp_path / "split")
    assert manifest.temperatures == exits.temperatures
    assert manifest.exits_trained == exits.sha256


@pytest.mark.parametrize("form", ["head", "translator"])
def test_the_whole_command_ends_the_same_after_an_interruption(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    exit_heads.train(str(checkpoint), [1], [data], form, RECIPE, tmp_path / "unbroken.safetensors")
    monkeypatch.setattr(exit_training, "CHECKPOINT_STEPS", 2)
    with monkeypatch.context() as broken:
        broken.setattr(exit_heads.Screen, "show", lambda self, progress: 1 / (progress.step != 3))
        with pytest.raises(ZeroDivisionError):
            exit_heads.train(str(checkpoint), [1], [data], form, RECIPE, tmp_path / "broken.safetensors")
    assert not (tmp_path / "broken.safetensors").exists()
    exit_heads.train(str(checkpoint), [1], [data], form, RECIPE, tmp_path / "broken.safetensors")
    assert (tmp_path / "broken.safetensors").read_bytes() == (tmp_path / "unbroken.safetensors").read_bytes()


def test_questions_without_an_answer_are_answered_by_the_model_itself_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_answers, "BATCH", 2)
    whole = LlamaForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    path, seen = tmp_path / "questions.jsonl", list[int]()
    rows = [{"prompt": "What is one?"}, {"prompt": "What is 1?", "answer": "A number."}, {"prompt": "And what is two?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "Three"}]))

    def read() -> list[TokenizedText]:
        own = own_answers.OwnAnswers(Checkpoint(checkpoint), 8, tmp_path / "kept")
        return exit_texts.every(path, tokenizer, 64, lambda prompts: own(prompts, seen.append))

    texts = read()
    for at in (0, 2, 3):
        asked = exit_texts.question(tokenizer, [*rows, {"prompt": "Three"}][at]["prompt"])
        right = whole.generate(torch.tensor([asked]), do_sample=False, max_new_tokens=8)[0].tolist()
        assert (texts[at].ids, texts[at].first) == (right, len(asked) - 1)
    assert tokenizer.decode(texts[1].ids).endswith("A number.<|end|>")
    assert seen == [2, 1]
    monkeypatch.setattr(own_answers, "AutoModelForCausalLM", None)
    assert read() == texts, "what was kept needs no model"


def test_a_temperature_calibrates_an_overconfident_exit(base: LlamaForCausalLM, texts: list[TokenizedText]) -> None:
    model = EarlyExitLLM(base, [1, 2])
    with torch.no_grad():
        for head in model.exit_heads.values():
            head.head *= 40
    for fit in fit_temperatures(model, [compute(model, texts[:8])]):
        assert fit.temperature > 1
        assert fit.ece_after < fit.ece_before


def test_no_more_logits_are_computed_than_a_temperature_is_fitted_to(
    base: LlamaForCausalLM, texts: list[TokenizedText], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, computed = EarlyExitLLM(base, [1, 2]), list[int]()
    states, logits = compute(model, texts), model.logits
    monkeypatch.setattr(temperatures, "LOGITS", 1)
    monkeypatch.setattr(model, "logits", lambda number, at: computed.append(number) or logits(number, at))
    fit_temperatures(model, [states])
    assert computed == [0, 0, 1, 1], "one part for the coarse temperatures and one for the fine ones"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "No such file"),
        ("a.jsonl", '{"prompt": "one", "answer": "two"}\n', "2 or more are needed"),
        ("one.jsonl", '{"prompt": "one"}\n', "1 usable texts"),
        ("long.jsonl", '{"prompt": "' + "one " * 2000 + '"}\n{"prompt": "two"}\n', "1 usable texts"),
        ("b.jsonl", "{", "line 1"),
        ("c.txt", "only one passage", "2 or more are needed"),
        ("d.txt", "", "2 or more are needed"),
        ("e.txt", b"\xff\xfe", "utf-8"),
    ],
)
def test_wrong_data_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | bytes | None,
    said: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(own_answers, "AutoModelForCausalLM", None)  # nothing is answered before the check
    with pytest.raises(ConfigError, match=said):
        exit_heads.train(str(checkpoint), [1], [path], "translator", RECIPE, tmp_path / "exits.safetensors")
    with pytest.raises(ConfigError, match="--exits"):
        exit_heads.train(str(checkpoint), [2, 1], [path], "translator", RECIPE, tmp_path / "exits.safetensors")


def test_questions_are_learned_by_their_answers_and_passages_as_a_whole(tmp_path: Path, data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.DEMO)
    training, validation = exit_texts.read(data, tokenizer, longest=64)
    assert (len(training), len(validation)) == (27, 3)
    ids, first = training[0]
    assert tokenizer.decode(ids[: first + 1]) == "<|user|>What is 0 + 0?<|assistant|>"
    assert tokenizer.decode(ids[first + 1 :]) == "0 + 0 = 0.<|end|>"
    (tmp_path / "text.txt").write_text("One passage\nof two lines.\n\nAnother one.\n\n\n\nA third.")
    passages = [text for part in exit_texts.read(tmp_path / "text.txt", tokenizer, longest=4) for text in part]
    assert [text.first for text in passages] == [0, 0, 0]
    assert max(len(text.ids) for text in passages) == 4
    trained, held_out = exit_texts.demo(tokenizer, count=20)
    assert len(trained) == 20 and not {tuple(t.ids) for t in trained} & {tuple(t.ids) for t in held_out}


def answer(prompt: int, right: bool, confidence: list[list[float]], agrees: list[list[bool]]) -> ExitTrace:
    return ExitTrace(prompt, right, np.array(confidence), np.array(agrees))


def test_the_cost_of_a_threshold_is_counted_by_position() -> None:
    sure = answer(3, True, [[0.9, 0.9, 0.9], [0, 0, 0]], [[True] * 3] * 2)
    second = answer(3, True, [[0.9, 0.1, 0.9], [0, 0.8, 0]], [[True] * 3] * 2)
    asks = answer(3, True, [[0.9, 0.1, 0.9], [0, 0.1, 0]], [[True, False, True], [True, False, True]])
    got = apply_threshold([sure, second, asks], 0.8, layers=8, first=2)
    assert got.taken == pytest.approx([7 / 9, 1 / 9])
    assert got.cloud_tokens == pytest.approx(1 / 9)
    assert got.cloud_answers == pytest.approx(1 / 3)
    assert got.exact_match == 1  # the cloud gave the tokens that the exits had wrong
    # For the second token the cloud computes 3 positions of the prompt and 1 of the answer; each answer has 3 + 2.
    assert got.cloud_work == pytest.approx((3 + 1) * 6 / (3 * 5 * 8))


def test_a_confident_wrong_exit_makes_the_answer_wrong() -> None:
    wrong = answer(2, True, [[0.9, 0.9]], [[True, False]])
    never_right = answer(2, False, [[0.9, 0.9]], [[True, True]])
    assert apply_threshold([wrong, never_right], 0.8, 8, 2).exact_match == 0
    everything = apply_threshold([wrong, never_right], 1.01, 8, 2)
    assert (everything.exact_match, everything.cloud_tokens, everything.cloud_work) == (0.5, 1, 6 / 8)


def test_the_committed_table_belongs_to_the_committed_exits() -> None:
    table = demo.README.read_text()
    begin, end = demo.MARKS
    assert begin.format("exits") in table and end in table
    exits = Exits(Checkpoint(demo.CLOUD), [2, 4], demo.EXITS)
    for exit, temperature in zip(exits.layers, exits.temperatures, strict=True):
        assert f"| {exit} layers | {temperature:.2f} |" in table
