"""F2 on the edge: single drafts, and sessions of drafts that verdicts correct."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.config_edge import EdgeModelConfig
from common.errors import ContextLengthError, NotFoundError, RequestError
from common.protocol.openai_sampling import LARGEST_BIAS, MAX_BIASES
from common.protocol.tokenization import LONGEST_TOKEN
from common.types import GREEDY, NEVER, Draft, DraftRequest, DraftResponse, Sampling, StopRule, TokenProb, Verdict
from edge.engine.edge_model import EdgeModel
from edge.engine.engine import EdgeEngine
from edge.engine.text_model import SHORT_TEXT

MAX_DRAFT_TOKENS = 128
"""The most tokens that one draft request may ask for."""


class DraftGenerator:
    """Answers draft requests. With `use_kv_cache` False no KV is reused between requests (F3 off).

    Given a model's path instead of an engine, it owns an engine, which the first request loads and `close` frees.
    """

    def __init__(self, engine: EdgeModel | str, use_kv_cache: bool = True) -> None:
        self._owned: EdgeEngine | None = None
        if isinstance(engine, str):
            engine = self._owned = EdgeEngine(EdgeModelConfig(path=engine, context_length=2048))
        self._engine: EdgeModel = engine
        self._use_kv_cache = use_kv_cache

    async def close(self) -> None:
        """Frees the engine, if this generator owns it."""
        if self._owned:
            await self._owned.close()

    async def generate_draft(self, request: DraftRequest) -> DraftResponse:
        """Drafts up to `request.max_tokens` tokens after the prompt, whose text may contain special tokens.

        Raises RequestError that names the wrong field.
        """
        if self._owned:
            await asyncio.shield(self._owned.start())  # a cancelled request must not stop the load for others
        check_sampling(request.sampling)
        self._engine.check_ids([token for token, _ in request.sampling.logit_bias], "logit_bias")
        if not 1 <= request.max_tokens <= MAX_DRAFT_TOKENS:
            raise RequestError(f"max_tokens must be in 1..{MAX_DRAFT_TOKENS}", param="max_tokens")
        prompt = await self._prompt_ids(request)
        async with self._engine.sequence(prompt, self._use_kv_cache) as sequence:
            draft = await sequence.draft(prompt, request.max_tokens, request.sampling, stop=request.stop)
        texts = [self._engine.detokenize([token], special=True) for token in draft.token_ids]
        columns = zip(draft.token_ids, texts, draft.probs, draft.confidences, strict=True)
        return DraftResponse(
            draft_tokens=texts,
            draft_token_ids=draft.token_ids,
            token_probs=[TokenProb(token, text, p, math.log(p), confidence) for token, text, p, confidence in columns],
            prompt_tokens=len(prompt),
            finished=draft.finished,
            latency_ms=draft.latency_ms,
        )

    async def _prompt_ids(self, request: DraftRequest) -> list[int]:
        if request.prompt_token_ids is None:
            if len(request.prompt) > self._engine.context_length * LONGEST_TOKEN:
                raise ContextLengthError(f"a context of {self._engine.context_length} tokens is too short", "prompt")
            param, text = "prompt", request.prompt
            if len(text.encode()) <= SHORT_TEXT:
                prompt = self._engine.tokenize(text, parse_special=True)
            else:
                prompt = await asyncio.to_thread(self._engine.tokenize, text, True, True)
        else:
            prompt, param = request.prompt_token_ids, "prompt_token_ids"
        if not request.prompt and not request.prompt_token_ids:
            raise RequestError(f"{param} must not be empty", param=param)
        self._engine.check_ids(prompt, param)
        return prompt


@dataclass
class _Session:
    """The committed tokens, and those drafted after them."""

    committed: list[int]
    drafted: list[int] = field(default_factory=list)


class DraftManager:
    """Drafts for up to `max_sessions` sessions; beyond that it forgets the least recently used.

    A session keeps only token ids: the engine finds its KV in a sequence or in the store, or computes it again. Several
    drafts may follow each other before a verdict arrives.
    """

    def __init__(self, engine: EdgeEngine, max_sessions: int = 64) -> None:
        self._engine = engine
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def begin(self, session: str, token_ids: Sequence[int]) -> None:
        """Starts a session, or restarts it, after `token_ids`."""
        self._sessions[session] = _Session(list(token_ids))
        self._sessions.move_to_end(session)
        while len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)

    async def draft(self, session: str, limit: int, sampling: Sampling = GREEDY, stop: StopRule = NEVER) -> Draft:
        """Up to `limit` tokens after all of the session's tokens, drafted ones included (see `Sequence.draft`).

        Raises NotFoundError for a session that was not begun or was forgotten.
        """
        state = self._of(session)
        tokens = state.committed + state.drafted
        async with self._engine.sequence(tokens) as sequence:
            draft = await sequence.draft(tokens, limit, sampling, stop=stop)
        if tokens == state.committed + state.drafted:  # else a verdict arrived meanwhile and made this draft useless
            state.drafted += draft.token_ids
        return draft

    def settle(self, session: str, verdict: Verdict) -> list[int]:
        """Commits the verdict's tokens and returns all committed tokens.

        Tokens drafted beyond them are kept if the verdict agrees with the draft, and dropped if not.
        """
        state = self._of(session)
        count = len(verdict.token_ids)
        state.committed += verdict.token_ids
        state.drafted = state.drafted[count:] if state.drafted[:count] == verdict.token_ids else []
        return list(state.committed)

    def end(self, session: str) -> None:
        """Forgets the session, if it exists."""
        self._sessions.pop(session, None)

    def _of(self, session: str) -> _Session:
        if session not in self._sessions:
            raise NotFoundError(f"no draft session {session!r}", param="session")
        self._sessions.move_to_end(session)
        return self._sessions[session]


def check_sampling(sampling: Sampling) -> None:
    """Raises RequestError, naming the field, for numbers out of range."""
    if not 0 <= sampling.temperature < math.inf:
        raise RequestError("temperature must be at least 0", param="temperature")
    if not 0 < sampling.top_p <= 1:
        raise RequestError("top_p must be above 0 and at most 1", param="top_p")
    if not 0 <= sampling.min_p <= 1:
        raise RequestError("min_p must be in 0..1", param="min_p")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise RequestError("repetition_penalty must be above 0", param="repetition_penalty")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(sampling, name)):
            raise RequestError(f"{name} must be a number", param=name)
    if sampling.top_k < 0:
        raise RequestError("top_k must be at least 0", param="top_k")
    if len(sampling.logit_bias) > MAX_BIASES:
        raise RequestError(f"more than {MAX_BIASES} tokens", param="logit_bias")
    if any(not abs(bias) <= LARGEST_BIAS for _, bias in sampling.logit_bias):
        raise RequestError(f"a bias must be in -{LARGEST_BIAS}..{LARGEST_BIAS}", param="logit_bias")
