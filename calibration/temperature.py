"""Fits the temperature under which a model's confidence is calibrated, by the likelihood of right answers.

The right answers to held-out questions are likeliest at that temperature (Guo et al. 2017, arXiv 1706.04599). The
command is `python -m models.fit_temperature`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from common.protocol.openai import Message
from edge.confidence import Floats, Softmax
from edge.llama.batch import SequenceTokens
from edge.llama.model import CHUNK, Llama
from edge.text.chat_template import ChatTemplate

COARSE = np.geomspace(0.25, 8.0, 21)
"""Temperatures that are tried first, from underconfident to overconfident models; 1 is among them."""
FINE = np.geomspace(2**-0.25, 2**0.25, 15)
"""Factors to the best of these that are tried next."""
BINS = 15
"""Of equal width, for the expected calibration error."""
ROWS = 16
"""Rows of logits that are evaluated together: few, so that large vocabularies stay in the processor's cache."""


class Calibration:
    """Likelihood and calibration error of a model's next tokens, summed up for every temperature."""

    def __init__(self, temperatures: NDArray[np.float64]) -> None:
        self.temperatures = temperatures
        self.tokens = 0
        self._loss = np.zeros(len(temperatures))
        # For each temperature and bin of confidence: number of tokens, sum of confidences, number of right tokens.
        self._bins = np.zeros((3, len(temperatures), BINS))

    def add(self, logits: Floats, right: NDArray[np.int64]) -> None:
        """Adds rows of logits, [R, V], and the right next tokens, [R]."""
        self.tokens += len(right)
        hits = (logits.argmax(axis=-1) == right).astype(float)
        for row, temperature in enumerate(self.temperatures):
            softmax = Softmax.of(logits / np.float32(temperature))
            self._loss[row] -= np.log(np.maximum(softmax.prob(right), 1e-30)).sum()
            confidence = 1.0 / softmax.total
            places = np.minimum((confidence * BINS).astype(int), BINS - 1)
            for table, values in zip(self._bins, (np.ones_like(hits), confidence, hits), strict=True):
                np.add.at(table[row], places, values)

    def confident(self, threshold: float) -> Floats:
        """The share of tokens with a confidence of `threshold` or more, which is a bin's edge, at each temperature."""
        return np.asarray(self._bins[0, :, round(threshold * BINS) :].sum(axis=-1) / max(self.tokens, 1))

    @property
    def nll(self) -> Floats:
        """The mean -ln p of the right token at each temperature, in nats; 0 or more, less is better."""
        return np.asarray(self._loss / max(self.tokens, 1))

    @property
    def ece(self) -> Floats:
        """The expected calibration error at each temperature, in [0, 1]: mean |confidence - accuracy| over the bins."""
        _, confidence, hits = self._bins
        return np.asarray(np.abs(confidence - hits).sum(axis=-1) / max(self.tokens, 1))

    @property
    def best(self) -> int:
        """The number of the temperature with the lowest `nll`."""
        return int(self.nll.argmin())


async def fit(llama: Llama, questions: Sequence[tuple[str, str]]) -> Calibration:
    """Tries temperatures on (prompt, right answer) pairs, coarsely, then finely; the first in the result is 1."""
    vocabulary = llama.vocabulary
    source = vocabulary.meta("tokenizer.chat_template") or ""
    async with ChatTemplate(source, vocabulary.bos, vocabulary.eos) as template:
        texts = [await _tokenize(prompt, answer, llama, template) for prompt, answer in questions]
    coarse = _evaluate(llama, texts, COARSE)
    return _evaluate(llama, texts, np.append(1.0, coarse.temperatures[coarse.best] * FINE))


async def _tokenize(prompt: str, answer: str, llama: Llama, template: ChatTemplate) -> tuple[list[int], int]:
    """The ids of a question with its answer in the model's chat template, and how many of them are the question's."""
    turn = Message("user", prompt)
    question = await template.render([turn])
    whole = await template.render([turn, Message("assistant", answer)], add_generation_prompt=False)
    if not whole.startswith(question):
        whole = question + answer
    vocabulary = llama.vocabulary
    question_ids, ids = (vocabulary.tokenize(text.encode(), False, True) for text in (question, whole))
    return ids[: llama.context_length], len(question_ids)


def _evaluate(llama: Llama, texts: list[tuple[list[int], int]], temperatures: NDArray[np.float64]) -> Calibration:
    calibration = Calibration(temperatures)
    for ids, first in texts:
        for logits, right in _logits(llama, ids, first):
            calibration.add(logits, right)
    return calibration


def _logits(llama: Llama, ids: list[int], first: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """The logits that predict each of the tokens from `first` on, and these tokens, ROWS at a time."""
    llama.rewind(0, 0)
    for begin in range(0, len(ids) - 1, CHUNK):
        chunk = ids[begin : begin + CHUNK]
        following = np.array(ids[max(begin + 1, first) : begin + len(chunk) + 1])
        logits = llama.decode([SequenceTokens(0, chunk[: len(ids) - 1 - begin], len(following))])
        assert logits is not None, "only an abort gives None"
        for row in range(0, len(following), ROWS):
            yield logits[row : row + ROWS], following[row : row + ROWS]
