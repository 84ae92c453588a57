"""Finds the temperature that makes a model's confidence mean what it says. Knows no server.

    python -m calibration.temperature [--model FILE.gguf] [--data FILE.jsonl]

Runs the model over held-out questions with their right answers, and takes the temperature under which these answers are
likeliest (Guo et al. 2017, arXiv 1706.04599). Data: one JSON object a line, {"prompt": ..., "answer": ...}; without a
file, the questions that the demo models were never trained on.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cli.args import run_program
from common.config_schema import EdgeModelConfig
from common.protocol.openai import Message
from common.errors import ConfigError
from cli.terminal import console
from edge.text.chat_template import ChatTemplate
from edge.confidence import Floats, Softmax
from edge.llama.model import CHUNK, Llama
from edge.llama.batch import SequenceTokens

COARSE = np.geomspace(0.25, 8.0, 21)
"""What is tried first: from far too timid to far too sure; 1 is among them."""
FINE = np.geomspace(2**-0.25, 2**0.25, 15)
"""Times the best of these, what is tried next."""
BINS = 15
"""Of equal width, for the calibration error."""
ROWS = 16
"""Rows of logits looked at together: few, so that large vocabularies stay in the processor's cache."""


class TemperatureQuestion(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    answer: str


class Calibration:
    """What a model said of right next tokens, summed up for every temperature."""

    def __init__(self, temperatures: NDArray[np.float64]) -> None:
        self.temperatures = temperatures
        self.tokens = 0
        self._loss = np.zeros(len(temperatures))
        # For each temperature and bin of confidence: how many tokens, the sum of their confidences, how many right.
        self._bins = np.zeros((3, len(temperatures), BINS))

    def add(self, logits: Floats, right: NDArray[np.int64]) -> None:
        """Takes rows of logits, [R, V], and the tokens that should have come next, [R]."""
        self.tokens += len(right)
        hits = (logits.argmax(axis=-1) == right).astype(float)
        for row, temperature in enumerate(self.temperatures):
            softmax = Softmax.of(logits / np.float32(temperature))
            self._loss[row] -= np.log(np.maximum(softmax.prob(right), 1e-30)).sum()
            confidence = 1.0 / softmax.total
            places = np.minimum((confidence * BINS).astype(int), BINS - 1)
            for table, values in zip(self._bins, (np.ones_like(hits), confidence, hits), strict=True):
                np.add.at(table[row], places, values)

    @property
    def nll(self) -> Floats:
        """The mean -ln p of the right token at each temperature; 0 and up, less is better."""
        return np.asarray(self._loss / max(self.tokens, 1))

    @property
    def ece(self) -> Floats:
        """The expected calibration error at each temperature, in [0, 1]: mean |confidence - accuracy| over the bins."""
        _, confidence, hits = self._bins
        return np.asarray(np.abs(confidence - hits).sum(axis=-1) / max(self.tokens, 1))

    @property
    def best(self) -> int:
        """Which temperature makes the right tokens likeliest."""
        return int(self.nll.argmin())


def read_questions(path: Path) -> list[TemperatureQuestion]:
    """Raises ConfigError in one line that names the wrong one of the file's."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=TemperatureQuestion))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    if not found:
        raise ConfigError(f"{path}: no questions")
    return found


def demo_questions() -> list[TemperatureQuestion]:
    from models.corpus.questions import held_out_pairs

    return [TemperatureQuestion(prompt, answer) for _, prompt, answer in held_out_pairs()]


async def tokenized(question: TemperatureQuestion, llama: Llama, template: ChatTemplate) -> tuple[list[int], int]:
    """A question with its answer in the model's own form, and how many of the tokens are the question's."""
    asked = Message("user", question.prompt)
    prompt = await template.render([asked])
    whole = await template.render([asked, Message("assistant", question.answer)], add_generation_prompt=False)
    if not whole.startswith(prompt):
        whole = prompt + question.answer
    vocabulary = llama.vocabulary
    prompt_ids, ids = (vocabulary.tokenize(text.encode(), False, True) for text in (prompt, whole))
    return ids[: llama.context_length], len(prompt_ids)


def rows_of(llama: Llama, ids: list[int], first: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """The logits before each of the tokens from `first` on, with these tokens, some at a time."""
    llama.rewind(0, 0)
    for begin in range(0, len(ids) - 1, CHUNK):
        fed = ids[begin : begin + CHUNK]
        following = np.array(ids[max(begin + 1, first) : begin + len(fed) + 1])
        logits = llama.decode([SequenceTokens(0, fed[: len(ids) - 1 - begin], len(following))])
        assert logits is not None, "nobody aborts here"
        for row in range(0, len(following), ROWS):
            yield logits[row : row + ROWS], following[row : row + ROWS]


async def fit(llama: Llama, questions: list[TemperatureQuestion]) -> Calibration:
    """Two looks at all the questions; the first of the temperatures in what is returned is 1."""
    vocabulary = llama.vocabulary
    source = vocabulary.meta("tokenizer.chat_template") or ""
    async with ChatTemplate(source, vocabulary.bos, vocabulary.eos) as template:
        texts = [await tokenized(question, llama, template) for question in questions]
    coarse = calibrated(llama, texts, COARSE)
    return calibrated(llama, texts, np.append(1.0, coarse.temperatures[coarse.best] * FINE))


def calibrated(llama: Llama, texts: list[tuple[list[int], int]], temperatures: NDArray[np.float64]) -> Calibration:
    calibration = Calibration(temperatures)
    for ids, first in texts:
        for logits, right in rows_of(llama, ids, first):
            calibration.add(logits, right)
    return calibration


def report(calibration: Calibration) -> str:
    plain, best = 0, calibration.best
    nll, ece, chosen = calibration.nll, calibration.ece, calibration.temperatures[best]
    return (
        f"{calibration.tokens} tokens of held-out answers\n"
        f"  temperature                {calibration.temperatures[plain]:6.2f} -> {chosen:6.2f}\n"
        f"  negative log likelihood    {nll[plain]:6.4f} -> {nll[best]:6.4f}  nats a token\n"
        f"  expected calibration error {ece[plain]:6.4f} -> {ece[best]:6.4f}\n"
        "In the config:\n"
        '  edge.confidence.strategy: "temperature"\n'
        f"  edge.confidence.temperature: {chosen:.2f}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m calibration.temperature", description="Calibrate a model's confidence."
    )
    parser.add_argument("--model", metavar="FILE", default="models/demo-edge.gguf", help="GGUF file (the demo's)")
    parser.add_argument(
        "--data", metavar="FILE", type=Path, help='lines of {"prompt": ..., "answer": ...} (the demo\'s)'
    )
    parser.add_argument("--context-length", type=int, default=1024, help="tokens (%(default)s)")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU; -1: all (%(default)s)")
    args = parser.parse_args()
    questions = demo_questions() if args.data is None else read_questions(args.data)
    model = EdgeModelConfig(
        path=args.model, context_length=args.context_length, gpu_layers=args.gpu_layers, sequences=1
    )
    llama = Llama(model)
    try:
        console().print(report(await fit(llama, questions)))
    finally:
        llama.free()


if __name__ == "__main__":
    sys.exit(run_program(main()))
