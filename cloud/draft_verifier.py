"""F2 on the cloud: checks a verify request, has the engine verify it, and answers it."""

import asyncio
from contextlib import nullcontext
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
from common.fair_queue import Turn
from common.tracing.spans import span
from common.types import FinishReason, Verdict, VerifyRequest, VerifyResponse

IDENTITY = msgspec.msgpack.Encoder()


class DraftVerifier:
    """Verifies drafts round by round: in a live request if `residents` has a place, else in a request of their own.

    `sessions` holds the prefixes between rounds; `residents`, if given, the live requests, which the caller closes.
    `turn` is entered around what the engine computes for a round outside `residents`, which have their own.
    With a model's path in place of an engine it owns an engine, which the first request starts and `close` closes.
    """

    def __init__(
        self,
        engine: CloudEngine | str,
        sessions: SessionTable | None = None,
        residents: ResidentPool | None = None,
        turn: Turn = nullcontext,
    ) -> None:
        self._owns = isinstance(engine, str)
        self._engine = CloudEngine(engine) if isinstance(engine, str) else engine
        self._starting: asyncio.Future[None] | None = None
        self._sessions = SessionTable() if sessions is None else sessions
        self._residents = residents
        self._turn = turn
        self._replays: Replays[VerifyResponse] = Replays()

    async def close(self) -> None:
        """Closes the engine, if this verifier owns it."""
        if self._owns:
            await self._engine.close()

    async def verify_draft(
        self, request: VerifyRequest, request_id: str | None = None, tenant: str = ""
    ) -> VerifyResponse:
        """Verifies one round; a repeat with the same idempotency key gets the first one's answer.

        Raises RequestError with the name of the wrong field, PrefixUnknown, ContextLengthError or EngineError.
        """
        if self._owns:
            self._starting = self._starting or asyncio.ensure_future(self._engine.start())
            await asyncio.shield(self._starting)  # a cancelled request must not stop the start for others
        validation.check(request, self._engine.vocab_size, self._engine.max_draft_tokens)
        if (spec := request.sampling.grammar) is not None:
            await self._engine.check_grammar(spec)
        if not request.idempotency_key:
            return await self._verify(request, request_id, tenant)
        key = (tenant, request.session, request.idempotency_key)
        digest = xxhash.xxh3_128_digest(IDENTITY.encode(request))
        return await self._replays.once(key, digest, lambda: self._verify(request, request_id, tenant))

    async def _verify(self, request: VerifyRequest, request_id: str | None, tenant: str) -> VerifyResponse:
        with span("verify") as traced:
            response = await self._verified(request, request_id, tenant)
            traced.set(form=response.form, drafted=response.drafted, accepted=response.accepted)
            traced.set(tokens=len(response.token_ids), engine_ms=response.latency_ms)
            return response

    async def _verified(self, request: VerifyRequest, request_id: str | None, tenant: str) -> VerifyResponse:
        round = await self._verify_round(request, request_id, tenant)
        residents = self._residents if request.session else None
        live = f"{tenant}/{request.session}"
        verdict = await residents.verify(live, round) if residents is not None else None
        form = VerifyForm.RESIDENT if verdict else VerifyForm.STATELESS
        if verdict is None:
            async with self._turn():
                verdict = await stateless.verify(self._engine, round)
        stop = find_stop(self._engine.tokenizer.decode, _answer(round), verdict.token_ids, request.stop)
        if stop is not None:
            verdict = _cut(verdict, stop.keep)
            if residents is not None:
                await residents.close_session(live)
        if request.session:
            self._sessions.commit(request.session, round.committed + verdict.token_ids, tenant)
        return self._response(round, verdict, stop.text if stop else None, form)

    async def _verify_round(self, request: VerifyRequest, request_id: str | None, tenant: str) -> VerifyRound:
        draft = request.draft_token_ids or await self._encode(request.draft_tokens, special=False)
        limit = self._engine.max_draft_tokens
        require(len(draft) <= limit, f"holds {len(draft)} tokens, at most {limit} are verified", "draft_tokens")
        committed = await self._committed(request, tenant)
        return VerifyRound(
            committed=committed,
            draft=draft[: max(0, self._engine.max_model_len - len(committed))],  # the context ends the answer there
            sampling=request.sampling,
            max_tokens=request.max_tokens,
            stop_token_ids=request.stop_token_ids,
            logprobs=request.logprobs,
            use_kv_cache=request.use_kv_cache,
            cache_salt=tenant or None,
            request_id=request_id,
        )

    async def _committed(self, request: VerifyRequest, tenant: str) -> list[int]:
        if not request.session and not request.new_token_ids and not request.prefix_length:
            committed = await self._encode([request.prompt], special=True)
            require(bool(committed), "must not be empty", "prompt")
            return committed
        committed = self._sessions.resolve(request, tenant)
        require(bool(committed), "must not be empty in a session's first round", "new_token_ids")
        return committed

    async def _encode(self, texts: list[str], special: bool) -> list[int]:
        text = "".join(texts)
        validation.check_length(len(text), self._engine.max_model_len, "prompt" if special else "draft_tokens")
        return await self._engine.encode(text, special) if text else []

    def _response(
        self, round: VerifyRound, verdict: Verdict, stopped_by: str | None, form: VerifyForm
    ) -> VerifyResponse:
        drawn, drafted = len(verdict.token_ids), len(round.draft)
        return VerifyResponse(
            token_ids=verdict.token_ids,
            accepted=verdict.accepted,
            drafted=drafted,
            acceptance_rate=verdict.accepted / drafted if drafted else 1.0,
            correction_position=verdict.accepted if verdict.accepted < min(drawn, drafted) else None,
            finish_reason=verdict.finish_reason,
            stop_reason=stopped_by,
            logprobs=verdict.logprobs,
            form=form,
            latency_ms=verdict.latency_ms,
        )


def _answer(round: VerifyRound) -> list[int]:
    """The answer so far; empty if the request does not say where it begins."""
    start = round.sampling.prompt_tokens
    return [] if start is None else round.committed[start:]


def _cut(verdict: Verdict, keep: int) -> Verdict:
    changes: dict[str, Any] = {"token_ids": verdict.token_ids[:keep], "accepted": min(verdict.accepted, keep)}
    if verdict.logprobs is not None:
        changes["logprobs"] = verdict.logprobs[:keep]
    return msgspec.structs.replace(verdict, finish_reason=FinishReason.STOP, **changes)
