"""F2 on the edge: one draft for whoever asks, or many for sessions that a verifier corrects. Knows nothing of HTTP."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.config_schema import EdgeModelConfig
from common.errors import NotFoundError, RequestError
from common.types import GREEDY, Draft, DraftRequest, DraftResponse, Sampling, TokenProb, Verdict
from edge.engine.engine import EdgeEngine

MAX_DRAFT_TOKENS = 128


class DraftGenerator:
    """Drafts for whoever asks. `use_kv_cache` False: nothing is reused from one request to the next (F3 off).

    Given a model's path in place of an engine it owns one, which the first request loads and `close` frees.
    """

    def __init__(self, engine: EdgeEngine | str, use_kv_cache: bool = True) -> None:
        self._owns = isinstance(engine, str)
        self._engine = (
            EdgeEngine(EdgeModelConfig(path=engine, context_length=2048)) if isinstance(engine, str) else engine
        )
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
            draft = await sequence.draft(prompt, request.max_tokens, request.sampling, stop_below=request.stop_below)
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


@dataclass
class _Session:
    """The tokens that are settled, and those drafted after them."""

    committed: list[int]
    drafted: list[int] = field(default_factory=list)


class DraftManager:
    """Drafts for up to `max_sessions` sessions, the least recently used of which are forgotten.

    A session's settled tokens are all it needs: its KV lies in a sequence that it prefers while nobody else has taken
    it, and is otherwise found or computed again. Several drafts may follow each other before a verdict comes.
    """

    def __init__(self, engine: EdgeEngine, max_sessions: int = 64) -> None:
        self._engine = engine
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def begin(self, session: str, token_ids: Sequence[int]) -> None:
        """Starts a session, or starts it anew, after `token_ids`."""
        self._sessions[session] = _Session(list(token_ids))
        self._sessions.move_to_end(session)
        while len(self._sessions) > self._max_sessions:
            self._sessions.popitem(last=False)

    async def draft(self, session: str, limit: int, sampling: Sampling = GREEDY, stop_below: float = 0.0) -> Draft:
        """Up to `limit` tokens after all that the session has, drafts included (see `Sequence.draft`).

        Raises NotFoundError for a session that was not begun, or is forgotten.
        """
        state = self._of(session)
        known = state.committed + state.drafted
        async with self._engine.sequence(known) as sequence:
            draft = await sequence.draft(known, limit, sampling, stop_below=stop_below)
        if known == state.committed + state.drafted:  # else a verdict came meanwhile, and this draft leads nowhere
            state.drafted += draft.token_ids
        return draft

    def settle(self, session: str, verdict: Verdict) -> list[int]:
        """Commits the verdict's tokens and returns all that is settled.

        What was drafted beyond them stays if the verdict agrees with it, and is rolled back if not.
        """
        state = self._of(session)
        agreed = len(verdict.token_ids)
        state.committed += verdict.token_ids
        state.drafted = state.drafted[agreed:] if state.drafted[:agreed] == verdict.token_ids else []
        return list(state.committed)

    def end(self, session: str) -> None:
        """Forgets the session, if it is there."""
        self._sessions.pop(session, None)

    def _of(self, session: str) -> _Session:
        if session not in self._sessions:
            raise NotFoundError(f"no draft session {session!r}", param="session")
        self._sessions.move_to_end(session)
        return self._sessions[session]


def check_sampling(sampling: Sampling) -> None:
    """Raises RequestError, naming the field, for numbers that mean nothing."""
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
