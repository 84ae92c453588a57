"""A model's own greedy answers to questions: what its exits learn from, or are recorded along."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from models.exits.texts import TokenizedText
from models.partition.checkpoint import Checkpoint

BATCH = 64
"""Questions that are answered together, until the longest of their answers ends."""


class OwnAnswers:
    """The model's greedy answers of at most `limit` tokens; the token that ends one is part of it.

    With a `folder`, each batch is kept in a file there, and the next run goes on behind the last one. The model is
    loaded only if there is something to answer.
    """

    def __init__(self, checkpoint: Checkpoint, limit: int, folder: Path | None = None) -> None:
        self._checkpoint = checkpoint
        self._limit = limit
        self._folder = folder
        self._model: Any = None

    def __call__(self, prompts: list[list[int]], done: Callable[[int], object]) -> list[TokenizedText]:
        """The prompts, of token ids, with their answers; `done` is called for each batch with its number of prompts."""
        found: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
        for begin in range(0, len(order), BATCH):
            numbers = order[begin : begin + BATCH]
            answers = self._kept([prompts[number] for number in numbers])
            found |= zip(numbers, answers, strict=True)
            done(len(numbers))
        return [TokenizedText(prompt + found[at], len(prompt) - 1) for at, prompt in enumerate(prompts)]

    def _kept(self, prompts: list[list[int]]) -> list[list[int]]:
        """The answers of one batch: those of its file, if there is one."""
        if self._folder is None:
            return self._answered(prompts)
        question = msgspec.json.encode([self._checkpoint.weights_hash, self._limit, prompts])
        path = self._folder / f"answers-{hashlib.sha256(question).hexdigest()[:16]}.json"
        if path.is_file():
            return msgspec.json.decode(path.read_bytes(), type=list[list[int]])
        answers = self._answered(prompts)
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.encode(answers))
        unfinished.rename(path)
        return answers

    def _answered(self, prompts: list[list[int]]) -> list[list[int]]:
        if self._model is None:
            disable_progress_bar()
            folder, dtype = self._checkpoint.folder, self._checkpoint.fast_dtype
            self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        pad = next(iter(ends - {None}), 0)
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # Published models often have a penalty among their own settings, which a split does not apply.
        greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": self._limit}
        with torch.inference_mode():
            rows = self._model.generate(ids, attention_mask=mask, pad_token_id=pad, **greedy)[:, width:].tolist()
        return [row[: next((at for at, token in enumerate(row, 1) if token in ends), len(row))] for row in rows]
