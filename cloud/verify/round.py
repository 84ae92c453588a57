"""One round of draft verification: what is asked, vLLM's parameters for it, and the verdict from vLLM's output."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import VLLMClientError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from cloud.engine import grammars
from cloud.vllm_plugin.keys import ANSWER_KEY, DRAFT_KEY
from common.errors import EngineError, GrammarError, RequestError
from common.protocol.prefix_hash import common_prefix
from common.types import GREEDY, FinishReason, Sampling, TokenLogprob, Verdict


@dataclass(frozen=True, slots=True)
class VerifyRound:
    """Verify `draft` after `committed` in one engine step; or, without a draft, draw up to `max_tokens` tokens.

    `logprobs`: None, or how many of the likeliest tokens to return beside each drawn token. `cache_salt` separates
    tenants' prefix caches; without `use_kv_cache` nothing is read from them.
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
    round: VerifyRound, kind: RequestOutputKind = RequestOutputKind.FINAL_ONLY, **other: Any
) -> SamplingParams:
    """vLLM's parameters for a round; raises RequestError for what vLLM refuses."""
    sampling, position = round.sampling, len(round.committed)
    extra: dict[str, object] = {DRAFT_KEY: list(round.draft)} if round.draft else {}
    if answer_matters(sampling) and sampling.prompt_tokens is not None and sampling.prompt_tokens < position:
        extra[ANSWER_KEY] = sampling.prompt_tokens
    max_tokens = len(round.draft) + 1 if round.draft else round.max_tokens
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else seed_at(sampling.seed, position),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "structured_outputs": grammars.params_of(sampling.grammar),
        "stop_token_ids": list(round.stop_token_ids),
        "logprobs": round.logprobs,
        "max_tokens": max_tokens,
        "min_tokens": min(max(0, (sampling.prompt_tokens or 0) + sampling.min_tokens - position), max_tokens)
        if sampling.min_tokens
        else 0,
        "ignore_eos": sampling.ignore_eos,
        "extra_args": extra or None,
        "skip_reading_prefix_cache": not round.use_kv_cache,
        "detokenize": False,
        "output_kind": kind,
        "skip_clone": True,  # else vLLM makes a deep copy, which nothing here needs
    }
    try:
        return SamplingParams(**(options | other))
    except (VLLMClientError, ValueError) as error:
        raise RequestError(str(error)) from error


def answer_matters(sampling: Sampling) -> bool:
    """Whether the next tokens depend on which of the committed tokens are the answer so far."""
    return bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.grammar is not None)


def verdict(round: VerifyRound, output: CompletionOutput, max_model_len: int, latency_ms: float) -> Verdict:
    """The verdict from a finished output; raises what `check_ended` raises."""
    check_ended(round, output)
    drawn = list(output.token_ids)
    # vLLM calls it `length`, too, when a round has drawn what it asked for: then the answer may continue.
    full = len(round.committed) + len(drawn) >= max_model_len
    at_end = FinishReason.LENGTH if full else None
    return Verdict(
        token_ids=drawn,
        accepted=common_prefix(drawn, round.draft),
        finish_reason=FinishReason.STOP if output.finish_reason == "stop" else at_end,
        latency_ms=latency_ms,
        logprobs=None if output.logprobs is None else token_logprobs(drawn, output.logprobs, round.logprobs or 0),
    )


def check_ended(round: VerifyRound, output: CompletionOutput) -> None:
    """Raises EngineError if the engine aborted the request, GrammarError if the request's grammar was the reason."""
    spec = round.sampling.grammar
    if output.finish_reason == "error" and spec is not None:
        raise GrammarError(f"{spec.noun} takes too much work, or does not allow the answer so far", param=spec.param)
    if output.finish_reason not in ("stop", "length"):
        raise EngineError(f"the engine ended the request: {output.finish_reason}")


def token_logprobs(drawn: Sequence[int], candidates: Sequence[Mapping[int, Logprob]], top: int) -> list[TokenLogprob]:
    """vLLM's log-probabilities of the drawn tokens, each with the `top` likeliest ones.

    They are natural logarithms of the model's own distribution, before temperature and filters.
    """
    return [
        TokenLogprob(
            token_id=token,
            logprob=ranked[token].logprob,
            top=[(i, one.logprob) for i, one in sorted(ranked.items(), key=_rank) if _rank((i, one)) <= top],
        )
        for token, ranked in zip(drawn, candidates, strict=False)
    ]


def _rank(candidate: tuple[int, Logprob]) -> int:
    """1 for the likeliest token."""
    return candidate[1].rank or 0


def seed_at(seed: int, position: int) -> int:
    """The seed of the round that begins at `position`: vLLM makes a new generator for each round."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
