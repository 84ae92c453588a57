"""The cloud's log probabilities of a prompt's tokens, from its OpenAI API: a completion that echoes the prompt."""

from typing import Any

from msgspec import Struct

from common.cloud_client.pool import CloudPool
from common.http.request_context import current_tenant, outgoing_priority
from common.types import TokenLogprob

PREFIX = "token_id:"
"""How vLLM names a token by its id where texts may be ambiguous."""


class EchoedLogprobs(Struct):
    """The `logprobs` object of a completion's choice, tokens named by their ids."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class EchoedChoice(Struct):
    logprobs: EchoedLogprobs


class EchoedPrompt(Struct):
    """The part of the completion that is read here."""

    choices: list[EchoedChoice]


async def prompt_scores(clouds: CloudPool, token_ids: list[int], top: int) -> list[TokenLogprob | None]:
    """The log probability of each token given those before it, with the `top` likeliest; None for the first.

    Raises EndpointError when no cloud can be used, RequestError for what it refuses.
    """
    body: dict[str, Any] = {"prompt": token_ids, "echo": True, "logprobs": top, "max_tokens": 1, "temperature": 0}
    if tenant := current_tenant.get():
        body["cache_salt"] = tenant  # the cloud puts that of the edge's key before it, as it does for `tenant`
    if priority := outgoing_priority():
        body["priority"] = priority
    cloud = clouds.pick(token_ids)
    with clouds.track_call(cloud):
        reply = await cloud.client.post("/v1/completions", body | {"return_tokens_as_token_ids": True}, EchoedPrompt)
    echoed = reply.choices[0].logprobs
    rows = zip(token_ids, echoed.token_logprobs, echoed.top_logprobs, strict=False)
    return [None if logprob is None else _score(token, logprob, likely or {}, top) for token, logprob, likely in rows]


def _score(token: int, logprob: float, likely: dict[str, float], top: int) -> TokenLogprob:
    ranked = sorted(likely.items(), key=lambda one: -one[1])[:top]
    return TokenLogprob(token, logprob, [(int(name.removeprefix(PREFIX)), value) for name, value in ranked])
