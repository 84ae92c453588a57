"""Computes a checkpoint one layer at a time, with one layer in memory."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.partition.checkpoint import EMBEDDING, NORM, Checkpoint


class Layerwise:
    """A checkpoint in float32, without a KV cache: the reference that its pieces are compared with."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        config = AutoConfig.from_pretrained(checkpoint.folder)
        config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 1, None
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
        self._model = AutoModel.from_config(config, dtype=torch.float32).eval()
        self._model.norm = nn.Identity()

    def embed(self, texts: list[list[int]]) -> list[Tensor]:
        """The embeddings of each text's tokens, [n, H]."""
        table = self._checkpoint.tensor(EMBEDDING)
        return [table[torch.tensor(ids)].float() for ids in texts]

    def states(self, texts: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yields the hidden states of all texts, [n, H] each, after every layer; `texts`: those before the first."""
        for layer in range(self._checkpoint.layers):
            names = self._checkpoint.config.layer_tensors(layer)
            weights = {name.split(".", 3)[3]: self._checkpoint.tensor(name).float() for name in names}
            self._model.layers[0].load_state_dict(weights)
            with torch.inference_mode():
                texts = [self._model(inputs_embeds=text[None], use_cache=False).last_hidden_state[0] for text in texts]
            yield texts

    def next_tokens(self, texts: list[Tensor]) -> list[Tensor]:
        """The likeliest next tokens of each text, [n], from its states after the last layer."""
        tensor = self._checkpoint.tensor
        return next_tokens(texts, tensor(NORM), tensor(self._checkpoint.head), self._checkpoint.config.rms_norm_eps)


def next_tokens(texts: list[Tensor], norm: Tensor, head: Tensor, eps: float) -> list[Tensor]:
    """The likeliest next tokens of each text, [n], from its states, [n, H], by this norm and head."""
    matrix = head.float()
    with torch.inference_mode():
        return [(nn.functional.rms_norm(text, norm.shape, norm.float(), eps) @ matrix.T).argmax(-1) for text in texts]
