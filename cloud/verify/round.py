"""One round as vLLM sees it: what is asked, with which parameters, what came of it. Pure: starts and sends nothing."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from cloud.vllm_plugin.keys import ANSWER_KEY, DRAFT_KEY
from common.errors import EngineError, RequestError
from common.protocol.prefix_hash import common_prefix
from common.types import GREEDY, Sampling, TokenLogprob, Verdict


@dataclass(frozen=True, slots=True)
class VerifyRound:
    """Verify `draft` after `committed` in one engine step; or, with no draft, draw up to `max_tokens`.

    `logprobs`: for each returned token its own and this many of the likeliest; None for none. `cache_salt` keeps
    tenants' prefix caches apart; `use_kv_cache` off reads nothing from them.
    """

    committed: list[int]
    draft: list[int]
    sampling: Sampling = GREEDY
    max_tokens: int = 1
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    use_kv_cache: bool = True
    cache_salt: str | None = None
    request_id: str | None = None


def vllm_params(
    asked: VerifyRound, kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY, **other: Any
) -> SamplingParams:
    """vLLM's parameters of a round; raises RequestError for what vLLM refuses."""
    sampling, position = asked.sampling, len(asked.committed)
    extra: dict[str, object] = {DRAFT_KEY: list(asked.draft)} if asked.draft else {}
    if answer_matters(sampling) and sampling.prompt_tokens is not None and sampling.prompt_tokens < position:
        extra[ANSWER_KEY] = sampling.prompt_tokens
    schema = sampling.json_schema
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else seed_at(sampling.seed, position),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "structured_outputs": None if schema is None else StructuredOutputsParams(json=schema),
        "stop_token_ids": list(asked.stop_token_ids),
        "logprobs": asked.logprobs,
        "max_tokens": len(asked.draft) + 1 if asked.draft else asked.max_tokens,
        "extra_args": extra or None,
        "skip_reading_prefix_cache": not asked.use_kv_cache,
        "detokenize": False,
        "output_kind": kind,
        "skip_clone": True,  # else vLLM copies it deeply; nobody else has it
    }
    try:
        return SamplingParams(**(options | other))
    except (VLLMClientError, ValueError) as error:
        raise RequestError(str(error)) from error


def answer_matters(sampling: Sampling) -> bool:
    """Whether what is drawn depends on which of the committed tokens are the answer so far."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.json_schema is not None)


def verdict(asked: VerifyRound, output: CompletionOutput, max_model_len: int, latency_ms: float) -> Verdict:
    """What a finished output says of the round; raises EngineError if the engine gave up on it."""
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"the engine ended the request: {output.finish_reason}")
    drawn = list(output.token_ids)
    full = len(asked.committed) + len(drawn) >= max_model_len
    return Verdict(
        token_ids=drawn,
        accepted=common_prefix(drawn, asked.draft),
        finished=output.finish_reason == "stop" or full,
        latency_ms=latency_ms,
        logprobs=None if output.logprobs is None else token_logprobs(drawn, output.logprobs, asked.logprobs or 0),
    )


def token_logprobs(drawn: Sequence[int], given: Sequence[Mapping[int, Logprob]], top: int) -> list[TokenLogprob]:
    """vLLM's log-probabilities (of the model's own distribution, before temperature and filters) as ours."""
    return [
        TokenLogprob(
            token_id=token,
            logprob=found[token].logprob,
            top=[(i, one.logprob) for i, one in sorted(found.items(), key=_rank) if _rank((i, one)) <= top],
        )
        for token, found in zip(drawn, given, strict=False)
    ]


def _rank(ranked: tuple[int, Logprob]) -> int:
    """1 for the likeliest token."""
    return ranked[1].rank or 0


def seed_at(seed: int, position: int) -> int:
    """The seed of one round: vLLM starts its generator anew for each request, so each position needs its own."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
