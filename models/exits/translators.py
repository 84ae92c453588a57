"""Exits that share the model's own norm and head, each behind an affine map of its states (a translator).

The form of an exit is that of the tuned lens (Belrose et al. 2023, arXiv 2303.08112). Translators begin as the least
squares map to the model's last states, and then learn the model's distribution (as in early_exit.py) over its likeliest
tokens and the rest. The logits of all other tokens are estimated from a sample of them, since a product with the whole
head would cost more than everything else.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.exits.early_exit import FrozenStates
from models.partition.checkpoint import Checkpoint
from models.partition.exit_tensors import TranslatorTensors

SAMPLE = 4096
"""Tokens of a batch that are not among the likeliest ones, whose logits are computed in their place."""
RIDGE = 1e-3
"""Of the least squares, relative to the variance of a state's number."""
LEAST_REST = 1e-6
"""The lowest probability of all tokens that are not among the likeliest, for its logarithm."""


class AffineTranslator(nn.Module):
    """An affine map of hidden states, [n, H], that are standardized by `mean` and `scale`; begins as the identity."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width), persistent=False)
        self.register_buffer("scale", torch.ones(width), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear((states.float() - self.mean) / self.scale, self.weight, self.bias)

    def folded(self) -> TranslatorTensors:
        """The same map without standardization."""
        with torch.no_grad():
            weight = self.weight / self.scale
            return TranslatorTensors(weight, self.bias - weight @ self.mean)


class TranslatedExits(nn.Module):
    """Exits of a checkpoint after `early_exit_layers`, which share its norm and head; these do not change."""

    norm: Tensor
    head: Tensor

    def __init__(self, checkpoint: Checkpoint, early_exit_layers: list[int]) -> None:
        super().__init__()
        self.early_exit_layers = early_exit_layers
        self.eps = checkpoint.config.rms_norm_eps
        self.register_buffer("norm", checkpoint.norm)
        self.register_buffer("head", checkpoint.tensor(checkpoint.head).float())
        width = checkpoint.config.hidden_size
        self.exit_heads = nn.ModuleDict({str(exit): AffineTranslator(width) for exit in early_exit_layers})

    def logits(self, number: int, states: Tensor) -> Tensor:
        """Exit `number`'s logits, [n, V], after hidden states, [n, H]."""
        return self._normed(number, states) @ self.head.T

    def next_tokens(self, states: FrozenStates) -> Tensor:
        """The whole model's likeliest next tokens, [n]."""
        assert states.likeliest is not None
        return states.likeliest[:, 0].long()

    def losses(self, states: FrozenStates) -> list[Tensor]:
        """Each exit's mean cross-entropy to the model's distribution over its likeliest tokens and the rest."""
        return self._losses(states, self.head, states.likeliest, 0, 0.0)

    def training_losses(self, states: FrozenStates) -> list[Tensor]:
        """An estimate of `losses`, the same for the same states; its cost does not grow with the vocabulary."""
        assert states.likeliest is not None
        likeliest, places = states.likeliest.long().unique(return_inverse=True)
        others = torch.ones(len(self.head), dtype=torch.bool, device=likeliest.device)
        others[likeliest] = False
        rest = others.nonzero().flatten()
        draw = torch.Generator().manual_seed(int(states.likeliest.sum()))
        sample = rest[torch.randperm(len(rest), generator=draw)[:SAMPLE].to(rest.device)]
        stands_for = math.log(len(rest) / max(1, len(sample))) if len(rest) else 0.0
        return self._losses(states, self.head[torch.cat([likeliest, sample])], places, len(likeliest), stands_for)

    def fit(self, batches: Iterable[FrozenStates]) -> None:
        """Sets every translator to the least squares map from its states to the model's last ones, without its norm."""
        moments = [_Moments(len(self.norm)) for _ in self.early_exit_layers]
        factors = torch.where(self.norm.abs() > 1e-6, 1 / self.norm, 0.0)
        for batch in batches:
            targets = batch.last.float().to(self.norm.device) * factors
            for each, states in zip(moments, batch.exits, strict=True):
                each.add(states, targets)
        for each, translator in zip(moments, self.exit_heads.values(), strict=True):
            each.solve(translator)

    def _normed(self, number: int, states: Tensor) -> Tensor:
        translated = self.exit_heads[str(self.early_exit_layers[number])](states)
        return nn.functional.rms_norm(translated, self.norm.shape, self.norm, self.eps)

    def _losses(
        self, states: FrozenStates, head: Tensor, places: Tensor | None, exact: int, stands_for: float
    ) -> list[Tensor]:
        """`head`: rows [C, H] of tokens; `places`, [n, K], of the likeliest ones among these.

        Of those from `exact` on each stands for exp(`stands_for`) tokens.
        """
        assert places is not None and states.log_probs is not None
        found = []
        for number in range(len(self.early_exit_layers)):
            logits = self._normed(number, states.exits[number]) @ head.T
            if stands_for:
                logits = torch.cat([logits[:, :exact], logits[:, exact:] + stands_for], dim=1)
            log_probs = logits.gather(1, places.long()) - logits.logsumexp(-1, keepdim=True)
            found.append(_cross_entropy(states.log_probs, log_probs))
        return found


def _cross_entropy(wanted: Tensor, found: Tensor) -> Tensor:
    """Of the log probabilities of K tokens, [n, K], and of all others together; the mean of n, in nats."""
    shares = wanted.exp()
    rest = (1 - shares.sum(-1)).clamp(min=0)
    rest_found = (1 - found.exp().sum(-1)).clamp(min=LEAST_REST)
    return -((shares * found).sum(-1) + rest * rest_found.log()).mean()


class _Moments:
    """Sums over positions from which a least squares map from states to targets is solved."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._states, self._targets = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        self._squares, self._products = (torch.zeros(width, width, dtype=torch.float64) for _ in range(2))

    def add(self, states: Tensor, targets: Tensor) -> None:
        """Adds n positions' states and targets, [n, H] each."""
        x, y = states.double().cpu(), targets.double().cpu()
        self._count += len(x)
        self._states += x.sum(0)
        self._targets += y.sum(0)
        self._squares += x.T @ x
        self._products += x.T @ y

    def solve(self, translator: AffineTranslator) -> None:
        mean, target = self._states / self._count, self._targets / self._count
        covariance = self._squares / self._count - mean.outer(mean)
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        correlation = covariance / scale.outer(scale) + RIDGE * torch.eye(len(scale), dtype=torch.float64)
        products = (self._products / self._count - mean.outer(target)) / scale[:, None]
        for tensor, value in (
            (translator.weight.data, torch.linalg.solve(correlation, products).T),
            (translator.bias.data, target),
            (translator.mean, mean),
            (translator.scale, scale),
        ):
            tensor.copy_(value)
