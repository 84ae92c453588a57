"""Early exits of a frozen model (a norm and a head after some of its layers), and their training loop.

An exit learns to predict what the whole model predicts: its loss is the cross-entropy to the whole model's distribution
(knowledge distillation, Hinton et al. 2015, arXiv 1503.02531). So any text will do, labelled or not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn


class FrozenStates(NamedTuple):
    """The frozen model's hidden states at n positions: `exits`, [E, n, H], after the layers of each of E exits.

    `last`, [n, H]: after the last layer and the model's norm, the input of the model's head. `likeliest`, [n, K], and
    `log_probs`, [n, K]: the model's K likeliest next tokens, in order, for exits that learn from these.
    """

    exits: Tensor
    last: Tensor
    likeliest: Tensor | None = None
    log_probs: Tensor | None = None

    def at(self, rows: Tensor) -> "FrozenStates":
        """Those at some of the positions."""
        return FrozenStates(self.exits[:, rows], *(each if each is None else each[rows] for each in self[1:]))


class TrainableExits(Protocol):
    """The exits of one model in some form, which learn from its states."""

    early_exit_layers: list[int]
    exit_heads: nn.ModuleDict
    """By the number of layers before each: what is trained."""

    def logits(self, number: int, states: Tensor) -> Tensor:
        """Exit `number`'s logits, [n, V], after hidden states, [n, H]."""

    def next_tokens(self, states: FrozenStates) -> Tensor:
        """The whole model's likeliest next tokens, [n]."""

    def losses(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's mean cross-entropy to the whole model's distribution, in nats per token."""

    def training_losses(self, states: FrozenStates) -> list[Tensor]:
        """What is minimized: the same, or an estimate of it."""


class EarlyExitHead(nn.Module):
    """An RMS norm and an output matrix (a GGUF's output_norm and output): hidden states [n, H] to logits [n, V]."""

    def __init__(self, norm: Tensor, head: Tensor, eps: float) -> None:
        super().__init__()
        self.norm = nn.Parameter(norm.detach().float().clone())
        self.head = nn.Parameter(head.detach().float().clone())
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.rms_norm(states.float(), self.norm.shape, self.norm, self.eps) @ self.head.T


class EarlyExitLLM(nn.Module):
    """A frozen causal language model of transformers with early exits; `early_exit_layers`: layers before each exit.

    Exits are initialised with the model's own norm and head. Raises ValueError if an exit is outside the model, or
    if `hidden_size` or `vocab_size` is given and differs from the model's.
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
        """The frozen model's states for `token_ids`, [B, T], where `wanted`, [B, T], is not 0 (None: everywhere)."""
        with torch.no_grad():
            out = self.base_model.model(token_ids, output_hidden_states=True, use_cache=False)
        at = slice(None) if wanted is None else wanted.flatten().nonzero().flatten()
        exits = [out.hidden_states[exit].flatten(0, 1)[at] for exit in self.early_exit_layers]
        return FrozenStates(torch.stack(exits), out.last_hidden_state.flatten(0, 1)[at])

    def forward(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's logits, [n, V]."""
        return [self.logits(number, at) for number, at in enumerate(states.exits)]

    def logits(self, number: int, states: Tensor) -> Tensor:
        """Exit `number`'s logits, [n, V], after hidden states, [n, H]."""
        logits: Tensor = self.exit_heads[str(self.early_exit_layers[number])](states)
        return logits

    def next_tokens(self, states: FrozenStates) -> Tensor:
        """The whole model's likeliest next tokens, [n]."""
        return self.targets(states).argmax(-1)

    def targets(self, states: FrozenStates) -> Tensor:
        """The whole model's distribution over the next token, [n, V]."""
        with torch.no_grad():
            return self.base_model.get_output_embeddings()(states.last).float().softmax(-1)

    def losses(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's mean cross-entropy to the whole model's distribution, in nats per token."""
        targets = self.targets(states)
        return [nn.functional.cross_entropy(logits, targets) for logits in self(states)]

    training_losses = losses


Batch: TypeAlias = FrozenStates | Tensor | Mapping[str, Tensor]
"""States, or token ids [B, T], or `input_ids` with an `attention_mask` that is 0 on padding."""
Watch: TypeAlias = Callable[[int, list[float]], object]
"""Called after each step with its number, from 1 on, and each exit's loss."""


def train_early_exit_heads(
    model: TrainableExits,
    dataloader: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    num_epochs: int = 3,
    watch: Watch = lambda step, losses: None,
) -> None:
    """Trains the exits' norms and heads; the base model does not change.

    `dataloader` is iterated once per epoch; `optimizer` has the parameters of `model.exit_heads`.
    """
    batches = (batch for _ in range(num_epochs) for batch in dataloader)
    for step, batch in enumerate(batches, 1):
        losses = train_step(model, as_states(model, batch), optimizer)
        watch(step, losses)


def train_step(model: TrainableExits, states: FrozenStates, optimizer: torch.optim.Optimizer) -> list[float]:
    losses = model.training_losses(states)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(losses).sum().backward()
    optimizer.step()
    return [loss.item() for loss in losses]


def validation_losses(model: TrainableExits, dataloader: Iterable[Batch]) -> list[float]:
    """Each exit's mean cross-entropy to the whole model's distribution, in nats per token."""
    total, count = [0.0] * len(model.early_exit_layers), 0
    with torch.no_grad():
        for batch in dataloader:
            states = as_states(model, batch)
            size = len(states.last)
            total = [sum_ + size * loss.item() for sum_, loss in zip(total, model.losses(states), strict=True)]
            count += size
    return [sum_ / max(count, 1) for sum_ in total]


def as_states(model: TrainableExits, batch: Batch) -> FrozenStates:
    """The states of a batch, on the model's device; only an EarlyExitLLM computes those of token ids."""
    if isinstance(batch, FrozenStates):
        device = next(model.exit_heads.parameters()).device
        return FrozenStates(*(each if each is None else each.to(device) for each in batch))
    assert isinstance(model, EarlyExitLLM)
    if isinstance(batch, Mapping):
        return model.states(batch["input_ids"], batch.get("attention_mask"))
    return model.states(batch)
