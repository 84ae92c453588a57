"""F2, the cloud half: a verify request checked, verified by the engine, and answered. Knows nothing of HTTP."""

from cloud import stateless
from cloud.engine import CloudEngine
from cloud.rounds import Round
from cloud.sessions import SessionTable
from common.errors import RequestError
from common.types import Sampling, Verdict, VerifyRequest, VerifyResponse


class DraftVerifier:
    """Verifies drafts with `engine`, which must be up; `sessions` holds the prefixes between rounds."""

    def __init__(self, engine: CloudEngine, sessions: SessionTable) -> None:
        self._engine = engine
        self._sessions = sessions

    async def verify_draft(self, request: VerifyRequest, request_id: str | None = None) -> VerifyResponse:
        """One round. Raises RequestError naming the field that is wrong, PrefixUnknown, or what the engine raises."""
        _check_sampling(request.sampling)
        _require(request.prefix_length >= 0, "must not be negative", "prefix_length")
        _require(request.max_tokens >= 1, "must be at least 1", "max_tokens")
        committed = self._committed(request)
        draft = request.draft_token_ids or self._encode("".join(request.draft_tokens), special=False)
        limit = self._engine.max_draft_tokens
        _require(len(draft) <= limit, f"holds {len(draft)} tokens, at most {limit} are verified", "draft_token_ids")
        self._check_ids(draft, "draft_token_ids")
        asked = Round(
            committed=committed,
            draft=draft,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            use_kv_cache=request.use_kv_cache,
            request_id=request_id,
        )
        verdict = await stateless.verify(self._engine, asked)
        if request.session:
            self._sessions.commit(request.session, committed + verdict.token_ids)
        return self._response(len(committed), len(draft), verdict)

    def _committed(self, request: VerifyRequest) -> list[int]:
        if not request.session and not request.new_token_ids and not request.prefix_length:
            committed = self._encode(request.prompt, special=True)
            _require(bool(committed), "must not be empty", "prompt")
            return committed
        self._check_ids(request.new_token_ids, "new_token_ids")
        committed = self._sessions.resolve(request)
        _require(bool(committed), "must not be empty in a session's first round", "new_token_ids")
        return committed

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._engine.tokenizer.encode(text, add_special_tokens=special)) if text else []

    def _check_ids(self, token_ids: list[int], param: str) -> None:
        if token_ids:
            vocab_size = self._engine.vocab_size
            known = min(token_ids) >= 0 and max(token_ids) < vocab_size
            _require(known, f"holds ids outside the vocabulary of {vocab_size}", param)

    def _response(self, committed: int, drafted: int, verdict: Verdict) -> VerifyResponse:
        drawn = len(verdict.token_ids)
        full = committed + drawn >= self._engine.max_model_len
        return VerifyResponse(
            token_ids=verdict.token_ids,
            accepted=verdict.accepted,
            drafted=drafted,
            correction_position=verdict.accepted if verdict.accepted < min(drawn, drafted) else None,
            finish_reason=("length" if full else "stop") if verdict.finished else None,
            latency_ms=verdict.latency_ms,
        )


def _check_sampling(sampling: Sampling) -> None:
    _require(sampling.temperature >= 0, "must not be negative", "sampling.temperature")
    _require(0 < sampling.top_p <= 1, "must be above 0 and at most 1", "sampling.top_p")
    _require(sampling.top_k >= 0, "must not be negative", "sampling.top_k")


def _require(holds: bool, message: str, param: str) -> None:
    if not holds:
        raise RequestError(f"{param} {message}", param=param)
