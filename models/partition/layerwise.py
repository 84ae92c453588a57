"""Computes a checkpoint one layer at a time, with one layer in memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.partition.checkpoint import EMBEDDING, Checkpoint, layer_prefix
from models.partition.exit_tensors import own_logits
from models.partition.layer_tensors import layer_tensors


class Layerwise:
    """A checkpoint without a KV cache; in float32 the reference that its pieces are compared with."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype
        kinds = sorted(set(checkpoint.config.kinds))
        self._models = {kind: _one_layer(checkpoint, kind).to(device, dtype) for kind in kinds}

    def embed(self, texts: Sequence[list[int] | Tensor]) -> list[Tensor]:
        """The embeddings of each text's tokens, [n, H]; of texts of equal length, [B, n], together: [B, n, H]."""
        table, scale = self._checkpoint.tensor(EMBEDDING), self._checkpoint.config.embedding_scale
        return [table[torch.as_tensor(ids)].to(self._device, self._dtype) * scale for ids in texts]

    def states(self, texts: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yields the hidden states of all texts after every layer; `texts`: those before the first, as of `embed`."""
        for layer, kind in enumerate(self._checkpoint.config.kinds):
            model = self._models[kind]
            read, prefix = self._checkpoint.tensor, layer_prefix(layer)
            names = layer_tensors(self._checkpoint.config)
            model.layers[0].load_state_dict({name: read(prefix + name).to(self._dtype) for name in names})
            with torch.inference_mode():
                texts = [_through(model, text) for text in texts]
            yield texts

    def next_tokens(self, texts: list[Tensor]) -> list[Tensor]:
        """The likeliest next tokens of each text, [n], from its states after the last layer."""
        return next_tokens(texts, own_logits(self._checkpoint))


def _through(model: Any, text: Tensor) -> Tensor:
    batch = text if text.dim() == 3 else text[None]
    return torch.reshape(model(inputs_embeds=batch, use_cache=False).last_hidden_state, text.shape)


def _one_layer(checkpoint: Checkpoint, kind: str) -> Any:
    """A model of transformers with one layer of this kind, and no norm after it."""
    config = AutoConfig.from_pretrained(checkpoint.folder)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 1, None
    if getattr(config, "layer_types", None):
        config.layer_types = [kind]
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    model.norm = nn.Identity()
    return model


def next_tokens(texts: list[Tensor], logits: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The likeliest next tokens of each text, [n], from its states, [n, H]; `logits`: [n, H] to [n, V]."""
    with torch.inference_mode():
        return [logits(text).argmax(-1) for text in texts]
