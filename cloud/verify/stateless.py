"""Verifies each round as a vLLM request of its own: any replica can, nothing is held between them. Knows no session."""

import time
from contextlib import aclosing

from cloud.engine.engine import CloudEngine
from cloud.verify.round import VerifyRound, verdict, vllm_params
from common.errors import ContextLengthError
from common.types import Verdict


async def verify(engine: CloudEngine, asked: VerifyRound) -> Verdict:
    """The verdict on one round; vLLM's prefix cache makes all but the newest tokens cheap.

    Where a busy step has no room for the whole draft, vLLM sees only its beginning; the verdict is right for it.
    Cancelling this aborts the request in vLLM. Raises ContextLengthError, RequestError or EngineError.
    """
    began = time.perf_counter()
    check_context(engine, asked)
    params = vllm_params(asked)
    async with aclosing(engine.generate(asked.committed, params, asked.request_id, asked.cache_salt)) as outputs:
        output = await anext(outputs)
    latency_ms = (time.perf_counter() - began) * 1000
    return verdict(asked, output.outputs[0], engine.max_model_len, latency_ms)


def check_context(engine: CloudEngine, asked: VerifyRound) -> None:
    """Raises ContextLengthError unless the round's tokens and one more fit the model's context."""
    committed, limit = len(asked.committed), engine.max_model_len
    if committed >= limit or committed + len(asked.draft) > limit:
        raise ContextLengthError(
            f"{committed} tokens and a draft of {len(asked.draft)} do not fit the context of {limit}"
        )
