"""F2, the cloud half: a verify request checked, verified by the engine, and answered. Knows nothing of HTTP."""

import asyncio
from typing import Any

import msgspec
import xxhash

from cloud.engine.engine import CloudEngine
from cloud.metrics import VerifyForm
from cloud.verify import stateless, validation
from cloud.verify.idempotency import Replays
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.round import VerifyRound
from cloud.verify.sessions import SessionTable
from cloud.verify.stop_strings import find_stop
from cloud.verify.validation import require
from common.types import Verdict, VerifyRequest, VerifyResponse

IDENTITY = msgspec.msgpack.Encoder()


class DraftVerifier:
    """Verifies drafts round by round: resident where `residents` has a place, else stateless.

    `sessions` holds the prefixes between rounds; `residents`, if any, the live requests, which the caller closes.
    Given a model's path in place of an engine it owns one, which the first request starts and `close` ends.
    """

    def __init__(
        self,
        engine: CloudEngine | str,
        sessions: SessionTable | None = None,
        residents: ResidentPool | None = None,
    ) -> None:
        self._owns = isinstance(engine, str)
        self._engine = CloudEngine(engine) if isinstance(engine, str) else engine
        self._starting: asyncio.Future[None] | None = None
        self._sessions = sessions or SessionTable()
        self._residents = residents
        self._replays: Replays[VerifyResponse] = Replays()

    async def close(self) -> None:
        """Ends the engine that this verifier owns, if it does."""
        if self._owns:
            await self._engine.close()

    async def verify_draft(
        self, request: VerifyRequest, request_id: str | None = None, tenant: str = ""
    ) -> VerifyResponse:
        """One round; a repeat under the same idempotency key has the answer of the first.

        Raises RequestError naming the field that is wrong, PrefixUnknown, ContextLengthError or EngineError.
        """
        if self._owns:
            self._starting = self._starting or asyncio.ensure_future(self._engine.start())
            await asyncio.shield(self._starting)  # one request that gives up must not stop the start for others
        validation.check(request, self._engine.vocab_size, self._engine.max_draft_tokens)
        if not request.idempotency_key:
            return await self._verify(request, request_id, tenant)
        key = (tenant, request.session, request.idempotency_key)
        asked = xxhash.xxh3_128_digest(IDENTITY.encode(request))
        return await self._replays.once(key, asked, lambda: self._verify(request, request_id, tenant))

    async def _verify(self, request: VerifyRequest, request_id: str | None, tenant: str) -> VerifyResponse:
        asked = self._round(request, request_id, tenant)
        live = f"{tenant}/{request.session}" if request.session and self._residents is not None else ""
        verdict = await self._residents.verify(live, asked) if self._residents is not None and live else None
        form = VerifyForm.RESIDENT if verdict else VerifyForm.STATELESS
        verdict = verdict or await stateless.verify(self._engine, asked)
        stop = find_stop(self._engine.tokenizer.decode, _answer(asked), verdict.token_ids, request.stop)
        if stop is not None:
            verdict = _cut(verdict, stop.keep)
            if self._residents is not None and live:
                await self._residents.close_session(live)
        if request.session:
            self._sessions.commit(request.session, asked.committed + verdict.token_ids, tenant)
        return self._response(asked, verdict, stop.text if stop else None, form)

    def _round(self, request: VerifyRequest, request_id: str | None, tenant: str) -> VerifyRound:
        draft = request.draft_token_ids or self._encode("".join(request.draft_tokens), special=False)
        limit = self._engine.max_draft_tokens
        require(len(draft) <= limit, f"holds {len(draft)} tokens, at most {limit} are verified", "draft_tokens")
        return VerifyRound(
            committed=self._committed(request, tenant),
            draft=draft,
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop_token_ids=request.stop_token_ids,
            logprobs=request.logprobs,
            use_kv_cache=request.use_kv_cache,
            cache_salt=tenant or None,
            request_id=request_id,
        )

    def _committed(self, request: VerifyRequest, tenant: str) -> list[int]:
        if not request.session and not request.new_token_ids and not request.prefix_length:
            committed = self._encode(request.prompt, special=True)
            require(bool(committed), "must not be empty", "prompt")
            return committed
        committed = self._sessions.resolve(request, tenant)
        require(bool(committed), "must not be empty in a session's first round", "new_token_ids")
        return committed

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._engine.tokenizer.encode(text, add_special_tokens=special)) if text else []

    def _response(
        self, asked: VerifyRound, verdict: Verdict, stopped_by: str | None, form: VerifyForm
    ) -> VerifyResponse:
        drawn, drafted = len(verdict.token_ids), len(asked.draft)
        full = stopped_by is None and len(asked.committed) + drawn >= self._engine.max_model_len
        return VerifyResponse(
            token_ids=verdict.token_ids,
            accepted=verdict.accepted,
            drafted=drafted,
            acceptance_rate=verdict.accepted / drafted if drafted else 1.0,
            correction_position=verdict.accepted if verdict.accepted < min(drawn, drafted) else None,
            finish_reason=("length" if full else "stop") if verdict.finished else None,
            stop_reason=stopped_by,
            logprobs=verdict.logprobs,
            form=form,
            latency_ms=verdict.latency_ms,
        )


def _answer(asked: VerifyRound) -> list[int]:
    """The answer so far, as far as is known where it begins."""
    start = asked.sampling.prompt_tokens
    return [] if start is None else asked.committed[start:]


def _cut(verdict: Verdict, keep: int) -> Verdict:
    changes: dict[str, Any] = {"token_ids": verdict.token_ids[:keep], "accepted": min(verdict.accepted, keep)}
    if verdict.logprobs is not None:
        changes["logprobs"] = verdict.logprobs[:keep]
    return msgspec.structs.replace(verdict, finished=True, **changes)
