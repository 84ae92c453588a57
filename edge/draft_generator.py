"""F2 on the edge: answers one draft request with the engine. Knows nothing of HTTP or of verifying."""

import asyncio
import math

from common.errors import RequestError
from common.types import DraftRequest, DraftResponse, Sampling, TokenProb
from edge.engine import EdgeEngine

MAX_DRAFT_TOKENS = 128


class DraftGenerator:
    """Drafts for whoever asks. `use_kv_cache` False: nothing is reused from one request to the next (F3 off).

    Given a model's path in place of an engine it owns one, which the first request loads and `close` frees.
    """

    def __init__(self, engine: EdgeEngine | str, use_kv_cache: bool = True) -> None:
        self._owns = isinstance(engine, str)
        self._engine = EdgeEngine(engine) if isinstance(engine, str) else engine
        self._use_kv_cache = use_kv_cache

    async def close(self) -> None:
        """Frees the engine that this generator owns, if it does."""
        if self._owns:
            await self._engine.close()

    async def generate_draft(self, request: DraftRequest) -> DraftResponse:
        """Drafts up to `request.max_tokens` tokens after the prompt, in which special tokens may be spelled out.

        Raises RequestError with the name of the field that is wrong.
        """
        if self._owns:
            await asyncio.shield(self._engine.start())  # one request that gives up must not stop the load for others
        check_sampling(request.sampling)
        if not 1 <= request.max_tokens <= MAX_DRAFT_TOKENS:
            raise RequestError(f"max_tokens must be in 1..{MAX_DRAFT_TOKENS}", param="max_tokens")
        prompt = self._prompt_ids(request)
        async with self._engine.sequence(prompt, self._use_kv_cache) as sequence:
            draft = await sequence.draft(prompt, request.max_tokens, request.sampling)
        texts = [self._engine.detokenize([token], special=True) for token in draft.token_ids]
        columns = zip(draft.token_ids, texts, draft.probs, draft.confidences, strict=True)
        return DraftResponse(
            draft_tokens=texts,
            draft_token_ids=draft.token_ids,
            token_probs=[TokenProb(token, text, p, math.log(p), sure) for token, text, p, sure in columns],
            prompt_tokens=len(prompt),
            finished=draft.finished,
            latency_ms=draft.latency_ms,
        )

    def _prompt_ids(self, request: DraftRequest) -> list[int]:
        if request.prompt_token_ids is None:
            prompt, param = self._engine.tokenize(request.prompt, parse_special=True), "prompt"
        else:
            prompt, param = request.prompt_token_ids, "prompt_token_ids"
        if not request.prompt and not request.prompt_token_ids:
            raise RequestError(f"{param} must not be empty", param=param)
        if any(not 0 <= token < self._engine.vocab_size for token in prompt):
            raise RequestError(f"token ids must be in 0..{self._engine.vocab_size - 1}", param=param)
        return prompt


def check_sampling(sampling: Sampling) -> None:
    """Raises RequestError, naming the field, for numbers that mean nothing."""
    if not 0 <= sampling.temperature < math.inf:
        raise RequestError("temperature must be at least 0", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise RequestError("top_p must be above 0 and at most 1", param="top_p")
    if sampling.top_k < 0:
        raise RequestError("top_k must be at least 0", param="top_k")
