"""Verifies each round as a vLLM request of its own, so that any replica can and nothing is held between rounds."""

import time
from contextlib import aclosing

from cloud.engine.engine import CloudEngine
from cloud.verify.round import VerifyRound, verdict, vllm_params
from common.errors import ContextLengthError
from common.types import Verdict


async def verify(engine: CloudEngine, round: VerifyRound) -> Verdict:
    """The verdict on one round; vLLM's prefix cache makes all but the newest tokens cheap.

    If a busy step has no room for the whole draft, only its beginning is verified, and the verdict is right for that.
    Cancelling this aborts the request in vLLM. Raises ContextLengthError, RequestError or EngineError.
    """
    began = time.perf_counter()
    check_context(engine, round)
    params = vllm_params(round)
    async with aclosing(engine.generate(round.committed, params, round.request_id, round.cache_salt)) as outputs:
        output = await anext(outputs)
    latency_ms = (time.perf_counter() - began) * 1000
    return verdict(round, output.outputs[0], engine.max_model_len, latency_ms)


def check_context(engine: CloudEngine, round: VerifyRound) -> None:
    """Raises ContextLengthError unless the committed tokens, and the draft or one more token, fit the context."""
    committed, limit = len(round.committed), engine.max_model_len
    if committed >= limit or committed + len(round.draft) > limit:
        raise ContextLengthError(
            f"{committed} tokens and a draft of {len(round.draft)} do not fit the context of {limit}"
        )
