"""A GGUF model that turns texts into vectors, many texts in one step."""

from collections.abc import Sequence
from typing import Any

import llama_cpp as c
import numpy as np
from numpy.typing import NDArray

from common.config_edge import EdgeModelConfig
from common.errors import StartError
from edge.llama.batch import Batch, BatchEntry
from edge.llama.context import LlamaContext
from edge.llama.vocabulary import LlamaVocabulary

TEXTS = 32
"""The most texts of one step."""

Vector = NDArray[np.float32]


class Embedder:
    """Used in one thread, except for `vocabulary` and `abort`; raises StartError for a model that cannot be used.

    Vectors are pooled as the file says; the mean over all tokens, where it says nothing. A text must fit one step.
    """

    def __init__(self, path: str, context_length: int, gpu_layers: int) -> None:
        config = EdgeModelConfig(
            path=path, context_length=context_length, gpu_layers=gpu_layers, sequences=TEXTS, kv_unified=True
        )
        self._context = LlamaContext(config, embeds=True)
        self.context_length = self._context.length
        """Tokens of one text, and of one step."""
        self.vocabulary = LlamaVocabulary(self._context.model)
        if c.llama_pooling_type(self._context.pointer) == c.LLAMA_POOLING_TYPE_RANK:
            self.free()
            raise StartError(f"model file {path}: it ranks texts, and gives no embeddings")
        self.size: int = c.llama_model_n_embd(self._context.model)
        self._batch = Batch(self.context_length)

    def free(self) -> None:
        self._context.free()

    def abort(self, wanted: bool) -> None:
        """Ends the current step, and every later one until `wanted` is False again; from any thread."""
        self._context.abort(wanted)

    def embed(self, texts: Sequence[list[int]]) -> list[Vector] | None:
        """The vectors of up to TEXTS texts that fit one step together, each of length 1; None if `abort` ended it."""
        context = self._context
        if context.memory:
            c.llama_memory_clear(context.memory, False)
        entries = [BatchEntry(at, 0, ids, len(ids)) for at, ids in enumerate(texts)]
        if not context.decode(self._batch.fill(entries)):
            return None
        return [_normalized(self._vector(at)) for at in range(len(texts))]

    def _vector(self, sequence: int) -> Any:
        return np.ctypeslib.as_array(c.llama_get_embeddings_seq(self._context.pointer, sequence), (self.size,))


def _normalized(vector: Any) -> Vector:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length else vector, np.float32)
