"""One live vLLM request that verifies round after round of one session. Knows nothing of other sessions or of limits.

Between two rounds vLLM keeps the accepted tokens with their KV and waits; the last drawn one, which has no KV yet, it
drops, and the next round brings it along with whatever else was committed since. Nothing is ever computed twice.
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


def can_reside(asked: VerifyRound) -> bool:
    """Whether a live request draws exactly what a request of the round's own would.

    To vLLM all that came before a live request's newest part is prompt, so penalties and a schema would begin anew.
    Without the KV cache nothing may be kept between rounds at all.
    """
    return asked.use_kv_cache and not answer_matters(asked.sampling)


class LiveRequest:
    """One running generation of vLLM: owned by who made it, used by one round at a time, ended by `close`."""

    def __init__(self, engine: CloudEngine, first: VerifyRound) -> None:
        """Nothing runs before the first `verify`; what `first` says of logprobs and cache salt holds for all rounds."""
        self.held: list[int] = []
        """The tokens whose KV vLLM keeps."""
        self.busy = False
        self.used_at = time.monotonic()
        self._fixed = _fixed_at_start(first)
        self._engine = engine
        self._parts: asyncio.Queue[StreamingInput] = asyncio.Queue()
        self._outputs = engine.generate(self._feed(), _params(first), first.request_id)

    def extends(self, asked: VerifyRound) -> bool:
        """Whether `asked` goes on from what is held, in the way that the request began."""
        held = len(self.held)
        grown = len(asked.committed) > held and asked.committed[:held] == self.held
        return grown and _fixed_at_start(asked) == self._fixed

    async def verify(self, asked: VerifyRound) -> Verdict:
        """The verdict on one round, which must extend what is held; cancelling this ends the request in vLLM.

        Raises ContextLengthError or RequestError before vLLM sees the round; after EngineError the request is over.
        """
        began = time.perf_counter()
        check_context(self._engine, asked)
        new = tokens_input(asked.committed[len(self.held) :], cache_salt=asked.cache_salt)
        self._parts.put_nowait(StreamingInput(new, _params(asked)))
        output = await anext(self._outputs)
        while output.outputs[0].finish_reason is None:
            output.add(await anext(self._outputs), aggregate=True)
        latency_ms = (time.perf_counter() - began) * 1000
        found = verdict(asked, output.outputs[0], self._engine.max_model_len, latency_ms)
        self.held = asked.committed + found.token_ids[:-1]
        self.used_at = time.monotonic()
        return found

    async def close(self) -> None:
        """Ends the request in vLLM and frees its KV; not while a round is under way."""
        await self._outputs.aclose()

    async def _feed(self) -> AsyncGenerator[StreamingInput, None]:
        while True:
            yield await self._parts.get()


def _params(asked: VerifyRound) -> SamplingParams:
    return vllm_params(asked, RequestOutputKind.DELTA)


def _fixed_at_start(asked: VerifyRound) -> tuple[int | None, str | None]:
    """What vLLM reads from a live request's first part only."""
    return asked.logprobs, asked.cache_salt
