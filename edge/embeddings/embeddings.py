"""POST /v1/embeddings: by the edge's embedding model, else by a cloud whose model gives embeddings."""

import asyncio
import base64
from typing import Any

import numpy as np

from common.errors import ContextLengthError, NotFoundError, RequestError
from common.protocol import codec
from common.protocol.content.embeddings import Embedding, EmbeddingsReply, EmbeddingsRequest, EmbeddingsUsage
from common.protocol.tokenization import LONGEST_TOKEN
from edge.api.context import ServerContext
from edge.embeddings import passed_on
from edge.engine.embedding_engine import EmbeddingEngine
from edge.llama.embedder import Embedder, Vector

MAX_TOKENS = 300_000
"""Tokens of one request, as OpenAI has it."""


async def embed(body: dict[str, Any], context: ServerContext) -> EmbeddingsReply | dict[str, Any]:
    """The vectors of the texts in `body`; raises RequestError that names the wrong field."""
    engine, name = context.embeddings, body.get("model")
    name = context.config.inference.aliases.get(name, name) if isinstance(name, str) else name
    if engine is None or (name and name in (context.vocabulary.cloud_model, "cloud")):
        return await passed_on.post("/v1/embeddings", body, context)
    passed_on.taken_privacy(body)  # it is, here
    wanted = codec.convert(body, EmbeddingsRequest)
    if name and name not in (engine.model_name, "edge"):
        raise NotFoundError(f"no embedding model {name!r} here; there is {engine.model_name!r}", param="model")
    texts = await asyncio.to_thread(_tokenized, wanted, engine.model)
    if wanted.dimensions and wanted.dimensions > engine.model.size:
        raise RequestError(f"this model's vectors have {engine.model.size} dimensions", param="dimensions")
    context.quotas.admit_prompt(sum(map(len, texts)))
    return await _reply(wanted, texts, engine)


async def _reply(wanted: EmbeddingsRequest, texts: list[list[int]], engine: EmbeddingEngine) -> EmbeddingsReply:
    vectors = [_cut(vector, wanted.dimensions) for vector in await engine.embed(texts)]
    data = [
        Embedding(index=at, embedding=_written(vector, wanted.encoding_format)) for at, vector in enumerate(vectors)
    ]
    tokens = sum(map(len, texts))
    return EmbeddingsReply(data=data, model=engine.model_name, usage=EmbeddingsUsage(tokens, tokens))


def _written(vector: Vector, format: str | None) -> list[float] | str:
    if format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _tokenized(wanted: EmbeddingsRequest, model: Embedder) -> list[list[int]]:
    texts, total = [], 0
    for at, text in enumerate(wanted.inputs):
        ids = _ids(text, model, "input" if isinstance(wanted.input, str) else f"input[{at}]")
        total += len(ids)
        if total > MAX_TOKENS:
            raise RequestError(f"the texts have more than {MAX_TOKENS} tokens", param="input")
        texts.append(ids)
    return texts


def _ids(text: str | list[int], model: Embedder, param: str) -> list[int]:
    length, vocabulary = model.context_length, model.vocabulary
    if isinstance(text, list):
        ids = text
        if ids and not (min(ids) >= 0 and max(ids) < vocabulary.size):
            raise RequestError(f"token ids must be in 0..{vocabulary.size - 1}", param=param)
    elif len(data := text.encode()) > length * LONGEST_TOKEN:
        raise ContextLengthError(f"{len(data)} bytes do not fit {length} tokens", param=param)
    else:
        ids = vocabulary.tokenize(data, add_special=True, parse_special=False) if text else []
    if not ids:
        raise RequestError("the text is empty", param=param)
    if len(ids) > length:
        limit = f"edge.embeddings.context_length allows {length}"
        raise ContextLengthError(f"{len(ids)} tokens in one text: {limit}", param=param)
    return ids


def _cut(vector: Vector, dimensions: int | None) -> Vector:
    """The first `dimensions`, of length 1 again."""
    if dimensions is None or dimensions == len(vector):
        return vector
    first = vector[:dimensions]
    return np.asarray(first / (np.linalg.norm(first) or 1.0), np.float32)
