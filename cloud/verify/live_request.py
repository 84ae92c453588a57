"""One live vLLM request that verifies all rounds of one session.

Between two rounds vLLM keeps the accepted tokens with their KV. It drops the last drawn token, which has no KV yet; the
next round sends it again, with all tokens committed since. So no position is computed twice.
"""

import asyncio
import time
from collections.abc import AsyncGenerator

from vllm.engine.protocol import StreamingInput
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cloud.engine.engine import CloudEngine
from cloud.verify.round import VerifyRound, answer_matters, verdict, vllm_params
from cloud.verify.stateless import check_context
from common.types import Verdict


def can_reside(round: VerifyRound) -> bool:
    """Whether a live request draws exactly what a request for this round alone would.

    To vLLM all tokens before a live request's newest part are prompt, so penalties and a schema would start over.
    Without the KV cache nothing may be kept between rounds.
    """
    return round.use_kv_cache and not answer_matters(round.sampling) and not round.sampling.min_tokens


class LiveRequest:
    """One running generation of vLLM, used by one round at a time; its owner ends it with `close`."""

    def __init__(self, engine: CloudEngine, first: VerifyRound) -> None:
        """The request starts with the first `verify`; the logprobs and cache salt of `first` hold for all rounds."""
        self.held: list[int] = []
        """The tokens whose KV vLLM keeps."""
        self.busy = False
        self.used_at = time.monotonic()
        self._fixed = _fixed_at_start(first)
        self._engine = engine
        self._parts: asyncio.Queue[StreamingInput] = asyncio.Queue()
        self._outputs = engine.generate(self._feed(), _params(first), first.request_id)

    def extends(self, round: VerifyRound) -> bool:
        """Whether the round continues what is held, with the same fixed parameters."""
        held = len(self.held)
        longer = len(round.committed) > held and round.committed[:held] == self.held
        return longer and _fixed_at_start(round) == self._fixed

    async def verify(self, round: VerifyRound) -> Verdict:
        """The verdict on one round, which must extend what is held; cancelling this ends the request in vLLM.

        Raises ContextLengthError or RequestError before vLLM gets the round; after EngineError the request is over.
        """
        began = time.perf_counter()
        check_context(self._engine, round)
        new = tokens_input(round.committed[len(self.held) :], cache_salt=round.cache_salt)
        self._parts.put_nowait(StreamingInput(new, _params(round)))
        output = await anext(self._outputs)
        while output.outputs[0].finish_reason is None:
            output.add(await anext(self._outputs), aggregate=True)
        latency_ms = (time.perf_counter() - began) * 1000
        result = verdict(round, output.outputs[0], self._engine.max_model_len, latency_ms)
        self.held = round.committed + result.token_ids[:-1]
        self.used_at = time.monotonic()
        return result

    async def close(self) -> None:
        """Ends the request in vLLM and frees its KV; must not be called during a round."""
        await self._outputs.aclose()

    async def _feed(self) -> AsyncGenerator[StreamingInput, None]:
        while True:
            yield await self._parts.get()


def _params(round: VerifyRound) -> SamplingParams:
    return vllm_params(round, RequestOutputKind.DELTA)


def _fixed_at_start(round: VerifyRound) -> tuple[int | None, str | None]:
    """The parameters that vLLM reads from a live request's first part only."""
    return round.logprobs, round.cache_salt
