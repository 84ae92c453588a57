"""F2 in continuous mode: one streaming generation, to which drafts are sent while it runs.

The cloud never waits for a draft: each step of the generation verifies the newest one that still fits, if any. Without
drafts it is plain streaming. With or without them, the answer has the cloud model's own distribution.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cloud.engine.engine import CloudEngine
from cloud.verify.draft_channel import Sender
from cloud.verify.round import VerifyRound, check_ended, token_logprobs, vllm_params
from cloud.vllm_plugin.draft_messages import DraftProgress
from cloud.vllm_plugin.keys import MAILBOX_KEY, PROGRESS_KEY
from common.errors import ContextLengthError
from common.protocol.stream_frames import EndFrame, TokensFrame
from common.types import FinishReason, TokenLogprob


class ContinuousAnswer:
    """The tokens that follow `round.committed`, up to `round.max_tokens`; `round.draft` is empty. For one use.

    A seed repeats the answer only without drafts: vLLM has one random generator for the whole answer, and how many
    numbers a step takes from it depends on the draft that it verifies.
    """

    def __init__(self, engine: CloudEngine, round: VerifyRound, sender: Sender, stop: Sequence[str] = ()) -> None:
        """Raises ContextLengthError, or RequestError for what vLLM refuses."""
        if len(round.committed) >= engine.max_model_len:
            raise ContextLengthError(
                f"{len(round.committed)} tokens do not fit the context of {engine.max_model_len}", param="token_ids"
            )
        self._engine = engine
        self._round = round
        self._sender = sender
        self._params = _params(round, sender, stop)
        self._position = len(round.committed)
        self._first = self._last = 0.0
        """When the first tokens came, and the last ones so far (`time.monotonic`)."""
        self.progress = DraftProgress()
        """Engine steps and counts of draft tokens, as of the last tokens."""

    @property
    def drawn(self) -> int:
        """Tokens of the answer so far."""
        return self._position - len(self._round.committed)

    def draft(self, position: int, token_ids: list[int]) -> None:
        """Sends a draft of what follows the first `position` tokens; the engine drops and counts a late one."""
        self._sender.send(position, token_ids)

    async def frames(self) -> AsyncGenerator[TokensFrame | EndFrame, None]:
        """Yields the tokens as they are drawn, then one end. Closing this aborts the generation. Raises EngineError."""
        round = self._round
        outputs = self._engine.generate(round.committed, self._params, round.request_id, round.cache_salt)
        async with aclosing(outputs):
            async for output in outputs:
                answer = output.outputs[0]
                if answer.token_ids:
                    yield self._tokens(output, answer)
                if output.finished:
                    yield self._end(answer, max(0, output.num_cached_tokens or 0))

    def _tokens(self, output: RequestOutput, answer: CompletionOutput) -> TokensFrame:
        drawn, position, before = list(answer.token_ids), self._position, self.progress.accepted
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._position += len(drawn)
        self.progress = DraftProgress(*(output.kv_transfer_params or {})[PROGRESS_KEY])
        return TokensFrame(
            position=position,
            token_ids=drawn,
            accepted=min(self.progress.accepted - before, len(drawn)),  # a stop string may have cut off accepted ones
            logprobs=_logprobs(drawn, answer, self._round.logprobs),
            finish_reason=FinishReason(answer.finish_reason) if answer.finish_reason in ("stop", "length") else None,
        )

    def _end(self, answer: CompletionOutput, cached: int) -> EndFrame:
        check_ended(self._round, answer)
        p = self.progress
        return EndFrame(
            finish_reason=FinishReason(answer.finish_reason),
            steps=p.steps,
            drafted=p.drafted,
            accepted=p.accepted,
            dropped=p.dropped,
            cached_tokens=cached,
            cloud_ms=1e3 * (self._last - self._first),
        )


def _params(round: VerifyRound, sender: Sender, stop: Sequence[str]) -> SamplingParams:
    other: dict[str, Any] = {"stop": list(stop), "detokenize": True} if stop else {}
    params = vllm_params(round, RequestOutputKind.DELTA, **other)
    params.extra_args = {**(params.extra_args or {}), MAILBOX_KEY: tuple(sender.address)}
    return params


def _logprobs(drawn: list[int], answer: CompletionOutput, top: int | None) -> list[TokenLogprob] | None:
    return None if answer.logprobs is None else token_logprobs(drawn, answer.logprobs, top or 0)
