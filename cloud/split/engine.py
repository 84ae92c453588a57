"""The tail of a split model in vLLM: takes hidden states and draws the next token."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from vllm.engine.protocol import StreamingInput
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cloud.engine import args as engine_args
from cloud.engine.base import VLLMEngine
from cloud.verify.round import seed_at, token_logprobs
from cloud.vllm_plugin.keys import KEEP_KEY, STATES_KEY
from common.errors import ContextLengthError, EngineError, RequestError
from common.protocol.split_frames import MAX_TOP
from common.types import GREEDY, Sampling


class Drawn(Struct, frozen=True):
    """One token; `computed` positions were computed for it, and the KV of `cached` more was already held."""

    token_id: int
    logprob: float
    """Natural logarithm, of the model's own distribution, before temperature and filters."""
    computed: int
    cached: int
    top: list[tuple[int, float]] = []
    """The likeliest tokens and their log probabilities, if they were asked for."""


class TailEngine(VLLMEngine):
    """vLLM with the tail of a split model in `folder`; `args` are vLLM's own, by their names in Python."""

    def __init__(self, folder: Path, args: Mapping[str, object] = {}) -> None:
        super().__init__(engine_args.parse_tail(str(folder), args))

    async def _warm_up(self) -> None:
        request = TailRequest(self)
        try:
            await request.token(
                np.ones((1, self._running.model_config.get_hidden_size()), np.float32), self.params(1, GREEDY)
            )
        finally:
            await request.close()

    @property
    def rewinds(self) -> bool:
        """Whether a live request can go back: every layer attends to all positions, so vLLM keeps all their KV."""
        window = self._running.model_config.get_sliding_window()
        return window is None or window >= self.max_model_len

    def params(self, position: int, sampling: Sampling, top: int = 0) -> SamplingParams:
        """vLLM's parameters for the token at `position`, and the `top` likeliest there.

        Raises ContextLengthError or RequestError.
        """
        if position >= self.max_model_len:
            raise ContextLengthError(f"{position} positions leave no room in the context of {self.max_model_len}")
        if any(token >= self.vocab_size for token, _ in sampling.logit_bias):
            raise RequestError(f"the model has {self.vocab_size} tokens", "sampling.logit_bias")
        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                logit_bias=dict(sampling.logit_bias) or None,
                seed=None if sampling.seed is None else seed_at(sampling.seed, position),
                logprobs=top,
                max_tokens=1,
                ignore_eos=True,  # each part of the live request draws one token
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
            )
        except (VLLMClientError, ValueError) as error:
            raise RequestError(str(error)) from error


class TailRequest:
    """One sequence's live request: takes its hidden states in order, and holds their KV until `close`.

    Used by one task at a time.
    """

    def __init__(self, engine: TailEngine) -> None:
        """The request starts with the first `token`."""
        self.computed = 0
        """Positions whose KV vLLM holds."""
        self.used_at = time.monotonic()
        self._engine = engine
        self._parts: asyncio.Queue[StreamingInput] = asyncio.Queue()
        self._outputs: AsyncGenerator[RequestOutput, None] | None = None

    async def token(self, states: NDArray[np.float32], params: SamplingParams) -> Drawn:
        """The token that follows the next n positions, whose `states` are [n, hidden].

        Raises RequestError or EngineError. After EngineError or a cancellation the request is over: `close` it.
        """
        cached, new, top = self.computed, len(states), params.logprobs or 0
        params.extra_args = {STATES_KEY: states.astype("<f4", copy=False).tobytes(), KEEP_KEY: cached}
        if self._outputs is None:
            params.logprobs = MAX_TOP  # vLLM's front end shows later parts no more alternatives than the first one
            self._outputs = self._engine.generate(self._feed(), params)
        self._parts.put_nowait(StreamingInput(tokens_input([0] * new), params))
        output = await anext(self._outputs)
        (drawn,) = output.outputs
        if drawn.finish_reason != "length" or drawn.logprobs is None:
            raise EngineError(f"the engine ended the request: {drawn.finish_reason}")
        (token_id,) = drawn.token_ids
        (scored,) = token_logprobs([token_id], drawn.logprobs, top)
        logprob = scored.logprob
        if not math.isfinite(logprob):
            raise RequestError("no token has a finite probability after these hidden states")
        self.computed += new
        self.used_at = time.monotonic()
        return Drawn(token_id, min(logprob, 0.0), new, cached, scored.top)

    def rewind(self, keep: int) -> None:
        """Goes back to the first `keep` positions (>= 1), if it holds more; only if the engine `rewinds`."""
        self.computed = min(self.computed, keep)

    async def close(self) -> None:
        """Ends the request in vLLM and frees its KV; must not be called while `token` runs."""
        if self._outputs is not None:
            await self._outputs.aclose()

    async def _feed(self) -> AsyncGenerator[StreamingInput, None]:
        while True:
            yield await self._parts.get()
