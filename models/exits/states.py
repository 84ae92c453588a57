"""Computes a frozen model's hidden states for many texts once, and keeps them on disk as training data."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.exits.early_exit import EarlyExitLLM, FrozenStates
from models.exits.texts import TokenizedText

FILE_POSITIONS = 16_384
"""Positions per file, roughly: they are in memory together, and batches are shuffled within a file."""
STEP_TOKENS = 4096
"""Tokens per forward pass, roughly, padding included."""


Compute = Callable[[list[TokenizedText]], FrozenStates]
"""The states at every position of these texts that is learned."""


class StateFiles:
    """The states of `texts` in numbered files of `folder`; those of files that do not exist yet are computed.

    `done` is called for each file with its number of texts.
    """

    def __init__(
        self, folder: Path, compute: Compute, texts: list[TokenizedText], done: Callable[[int], object]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        groups = list(_groups(texts, FILE_POSITIONS, lambda text: len(text.ids) - 1 - text.first))
        self._files = [folder / f"states-{number:05}.safetensors" for number in range(len(groups))]
        for path, group in zip(self._files, groups, strict=True):
            if not path.is_file():
                unfinished = path.with_suffix(".part")
                states = compute(group)._asdict()
                save_file({name: tensor for name, tensor in states.items() if tensor is not None}, unfinished)
                unfinished.rename(path)
            done(len(group))
        self.positions = [sum(len(text.ids) - 1 - text.first for text in group) for group in groups]

    def steps(self, size: int) -> int:
        """The number of batches of `size` positions."""
        return sum(-(-positions // size) for positions in self.positions)

    def batches(self, size: int, seed: int | None = None) -> Iterator[FrozenStates]:
        """All positions in batches of at most `size`; with a seed, files and the positions in each are shuffled."""
        shuffle = torch.Generator().manual_seed(seed or 0)
        for number in (
            torch.randperm(len(self._files), generator=shuffle) if seed is not None else range(len(self._files))
        ):
            found = FrozenStates(**load_file(self._files[number]))
            count = len(found.last)
            order = torch.randperm(count, generator=shuffle) if seed is not None else torch.arange(count)
            yield from map(found.at, order.split(size))


def compute(model: EarlyExitLLM, texts: list[TokenizedText]) -> FrozenStates:
    """The states at every position of `texts` that is learned; texts of similar length are computed together."""
    device = next(model.parameters()).device
    found = [model.states(ids.to(device), wanted.to(device)) for ids, wanted in padded(texts)]
    exits, last = zip(*(states[:2] for states in found), strict=True)
    return FrozenStates(torch.cat(exits, dim=1).contiguous().cpu(), torch.cat(last).cpu())


def padded(texts: list[TokenizedText]) -> Iterator[tuple[Tensor, Tensor]]:
    """Texts of similar length together: their token ids, [B, T], and 1 where one is learned, [B, T]."""
    for batch in _groups(sorted(texts, key=lambda text: len(text.ids)), STEP_TOKENS, lambda text: len(text.ids)):
        ids, wanted = (torch.zeros(len(batch), max(len(t.ids) for t in batch) - 1, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(batch):
            ids[row, : len(text.ids) - 1] = torch.tensor(text.ids[:-1])
            wanted[row, text.first : len(text.ids) - 1] = 1
        yield ids, wanted


def _groups(
    texts: list[TokenizedText], size: int, weight: Callable[[TokenizedText], int]
) -> Iterator[list[TokenizedText]]:
    """Texts in their order, in groups whose total weight just reaches `size`; the last may weigh less."""
    group: list[TokenizedText] = []
    total = 0
    for text in texts:
        group.append(text)
        total += weight(text)
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group
