"""Computes what translators learn from, with one layer of the model in memory: any model fits."""

import torch
from torch import Tensor, nn

from models.exits.early_exit import FrozenStates
from models.exits.states import padded
from models.exits.texts import TokenizedText
from models.partition.checkpoint import Checkpoint
from models.partition.layerwise import Layerwise

LIKELIEST = 32
"""Tokens of the model's distribution that are kept at each position."""
ROWS = 128
"""Positions whose logits are computed together."""


class LayerwiseStates:
    """The frozen model's states, as numbers of type `dtype`, and its likeliest next tokens, where texts are learned.

    States in float32 are computed so; others in what this CPU computes fast.
    """

    def __init__(
        self, checkpoint: Checkpoint, exits: list[int], device: str, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._exits = exits
        self._device = device
        self._dtype = dtype
        fast = device == "cpu" and dtype != torch.float32
        number = checkpoint.fast_dtype if fast else torch.float32
        self._layers = Layerwise(checkpoint, device, number)
        self._eps = checkpoint.config.rms_norm_eps
        self._norm = checkpoint.norm.to(device)
        self._head = checkpoint.tensor(checkpoint.head).to(device, number)

    def __call__(self, texts: list[TokenizedText]) -> FrozenStates:
        ids, wanted = zip(*padded(texts), strict=True)
        at = [each.bool().to(self._device) for each in wanted]
        states, kept = list[Tensor](), []
        for after, states in enumerate(self._layers.states(self._layers.embed(list(ids))), 1):
            if after in self._exits:
                kept.append(_chosen(states, at).to(self._dtype).cpu())
        last = nn.functional.rms_norm(_chosen(states, at).float(), self._norm.shape, self._norm, self._eps)
        likeliest, log_probs = zip(*map(self._likeliest, last.split(ROWS)), strict=True)
        return FrozenStates(torch.stack(kept), last.to(self._dtype).cpu(), torch.cat(likeliest), torch.cat(log_probs))

    def _likeliest(self, last: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates come from a product with the whole head, in its number format, and their logits from float32."""
        rough = (last.to(self._head.dtype) @ self._head.T).float()
        candidates = rough.topk(min(2 * LIKELIEST, rough.shape[-1])).indices
        logits = torch.bmm(self._head[candidates].float(), last[:, :, None]).squeeze(-1)
        values, at = logits.topk(min(LIKELIEST, logits.shape[-1]))
        ids, log_probs = candidates.gather(1, at), values - rough.logsumexp(-1, keepdim=True)
        return ids.int().cpu(), log_probs.cpu()


def _chosen(batches: list[Tensor], at: list[Tensor]) -> Tensor:
    return torch.cat([states[chosen] for states, chosen in zip(batches, at, strict=True)])
