"""Early exits: a norm and a head after some layers of a frozen model, and their training. Knows no engine and no files.

An exit learns to say what the whole model would say next: its loss is the cross-entropy to the last layer's own
distribution (knowledge distillation, Hinton et al. 2015, arXiv 1503.02531), so any text will do, labelled or not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn


class FrozenStates(NamedTuple):
    """What the frozen model left at some positions: the states after each exit's layers, [E, n, H], and its last ones.

    `last`, [n, H], are after the model's own norm: its head makes its logits of them.
    """

    exits: Tensor
    last: Tensor


class EarlyExitHead(nn.Module):
    """A norm and an output matrix of its own, as a GGUF's output_norm and output: [n, H] to logits, [n, V]."""

    def __init__(self, norm: Tensor, head: Tensor, eps: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(norm.detach().float().clone())
        self.head = nn.Parameter(head.detach().float().clone())
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.rms_norm(states.float(), self.norm.shape, self.norm, self.eps) @ self.head.T


class EarlyExitLLM(nn.Module):
    """A causal language model of transformers, frozen, with an exit after each of `early_exit_layers` of its layers.

    Exits begin as the model's own norm and head. Raises ValueError if an exit is outside the model, or `hidden_size`
    or `vocab_size` are given and not the model's.
    """

    def __init__(
        self,
        base_model: nn.Module,
        early_exit_layers: Sequence[int],
        hidden_size: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.base_model = base_model.eval().requires_grad_(False)
        self.early_exit_layers = list(early_exit_layers)
        config = base_model.config
        if not all(0 < exit < config.num_hidden_layers for exit in self.early_exit_layers):
            raise ValueError(f"exits {self.early_exit_layers}: the model has {config.num_hidden_layers} layers")
        found = (config.hidden_size, config.vocab_size)
        if (hidden_size or found[0], vocab_size or found[1]) != found:
            raise ValueError(f"the model has states of {found[0]} and {found[1]} tokens")
        norm, head = base_model.model.norm, base_model.get_output_embeddings()
        self.exit_heads = nn.ModuleDict(
            {str(e): EarlyExitHead(norm.weight, head.weight, norm.variance_epsilon) for e in self.early_exit_layers}
        )

    def states(self, token_ids: Tensor, wanted: Tensor | None = None) -> FrozenStates:
        """What the frozen model leaves of `token_ids`, [B, T], at the positions `wanted`, [B, T] (None: all)."""
        with torch.no_grad():
            out = self.base_model.model(token_ids, output_hidden_states=True, use_cache=False)
        at = slice(None) if wanted is None else wanted.flatten().nonzero().flatten()
        exits = [out.hidden_states[exit].flatten(0, 1)[at] for exit in self.early_exit_layers]
        return FrozenStates(torch.stack(exits), out.last_hidden_state.flatten(0, 1)[at])

    def forward(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's logits, [n, V]."""
        return [head(at) for head, at in zip(self.exit_heads.values(), states.exits, strict=True)]

    def targets(self, states: FrozenStates) -> Tensor:
        """The whole model's distribution of the next token, [n, V]."""
        with torch.no_grad():
            return self.base_model.get_output_embeddings()(states.last).float().softmax(-1)

    def losses(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's mean cross-entropy to the whole model's distribution, in nats a token."""
        targets = self.targets(states)
        return [nn.functional.cross_entropy(logits, targets) for logits in self(states)]


Batch: TypeAlias = FrozenStates | Tensor | Mapping[str, Tensor]
"""States, or token ids [B, T], or `input_ids` with an `attention_mask` that is 0 where there is only padding."""
Watch: TypeAlias = Callable[[int, list[float]], object]
"""Told after each step how many there were and what each exit's loss was."""


def train_early_exit_heads(
    model: EarlyExitLLM,
    dataloader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    num_epochs: int = 3,
    watch: Watch = lambda step, losses: None,
) -> None:
    """Trains the exits' norms and heads; the base model stays as it is, bit by bit.

    `dataloader` is gone through once an epoch; `optimizer` has the parameters of `model.exit_heads`.
    """
    batches = (batch for _ in range(num_epochs) for batch in dataloader)
    for step, batch in enumerate(batches, 1):
        losses = train_step(model, as_states(model, batch), optimizer)
        watch(step, losses)


def train_step(model: EarlyExitLLM, states: FrozenStates, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = model.losses(states)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()
    return [loss.item() for loss in losses]


def validation_losses(model: EarlyExitLLM, dataloader: Iterable[Batch]) -> list[float]:
    """Each exit's mean cross-entropy to the whole model's distribution, in nats a token."""
    total, count = [0.0] * len(model.early_exit_layers), 0
    with torch.no_grad():
        for batch in dataloader:
            states = as_states(model, batch)
            size = len(states.last)
            total = [sum_ + size * loss.item() for sum_, loss in zip(total, model.losses(states), strict=True)]
            count += size
    return [sum_ / max(count, 1) for sum_ in total]


def as_states(model: EarlyExitLLM, batch: Batch) -> FrozenStates:
    """The states of a batch, where the model is."""
    if isinstance(batch, FrozenStates):
        device = next(model.parameters()).device
        return FrozenStates(batch.exits.to(device), batch.last.to(device))
    if isinstance(batch, Mapping):
        return model.states(batch["input_ids"], batch.get("attention_mask"))
    return model.states(batch)
