"""What a server with OpenAI's API tells of itself: its model, its context, and how it goes on with an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from common.cloud_client.pool import Cloud
from common.enums import ContinuationForm
from common.errors import EndpointError, RequestError
from common.http.client import HTTPClient
from common.protocol.vocabulary import GREETING

NO_LIMIT = 1 << 20
"""Tokens of a context whose length nobody tells."""
GREETED = [{"role": "user", "content": GREETING}]
"""The conversation by which chat templates are compared."""
EXTRAS = {
    "vllm": {"top_k": "top_k", "repetition_penalty": "repetition_penalty", "min_tokens": "min_tokens"},
    "llamacpp": {"top_k": "top_k", "repetition_penalty": "repeat_penalty"},
}
"""Fields beside OpenAI's: what they are called here and there, by the owner that a server names in `/models`."""
VLLM, LLAMA = "vllm", "llamacpp"


class ListedModel(Struct):
    """An entry of `/models`."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class ListedModels(Struct):
    data: list[ListedModel]


class GenerationSettings(Struct):
    n_ctx: int | None = None


class Props(Struct):
    """The part of llama-server's `/props` that is read here."""

    default_generation_settings: GenerationSettings


class Rendered(Struct):
    """A prompt as text: reply of vLLM's `/detokenize` and of llama-server's `/apply-template`."""

    prompt: str


class TemplateTokens(Struct):
    """Reply of vLLM's `/tokenize`."""

    tokens: list[int]


@dataclass(frozen=True)
class ServerInfo:
    """`owner`: as in EXTRAS; any other word for a server that is not known here."""

    model: str
    owner: str
    context_length: int
    continuation: ContinuationForm

    @property
    def adds_bos(self) -> bool:
        """Whether a text gets the token that begins prompts even if it is asked not to add it."""
        return self.owner == LLAMA


async def ask_server(cloud: Cloud, writes: Callable[[str], bool]) -> ServerInfo:
    """Asks the server of `cloud`; raises EndpointError if it cannot be reached, or has no such model.

    `writes(text)`: whether the edge writes GREETED as `text`.
    """
    entry, client = cloud.entry, cloud.client
    try:
        models = (await client.get("/models", ListedModels)).data
        card = _card(models, entry.model, client.base_url)
        length = entry.context_length or card.max_model_len or await _slot_length(client, card) or NO_LIMIT
        continuation = entry.continuation
        if continuation is ContinuationForm.AUTO:
            continuation = await _continuation(client, card, writes)
    except RequestError as error:
        raise EndpointError(error.message) from error
    return ServerInfo(card.id, card.owned_by, length, continuation)


def _card(models: Sequence[ListedModel], wanted: str, url: str) -> ListedModel:
    if not wanted and models:
        return models[0]
    found = next((one for one in models if one.id == wanted), None)
    if found is None:
        there = ", ".join(one.id for one in models[:5]) or "none"
        raise EndpointError(f"{url} has no model {wanted!r}; it lists {there}")
    return found


async def _slot_length(client: HTTPClient, card: ListedModel) -> int | None:
    """llama-server's context of one request; None elsewhere."""
    if card.owned_by != LLAMA:
        return None
    props = await client.get(_beside(client, "/props"), Props)
    return props.default_generation_settings.n_ctx


async def _continuation(client: HTTPClient, card: ListedModel, writes: Callable[[str], bool]) -> ContinuationForm:
    """Text where the server writes a conversation as the edge does, else its messages; none of an unknown server."""
    if card.owned_by not in EXTRAS:
        return ContinuationForm.NONE
    try:
        text = await _rendered(client, card)
    except RequestError:  # it has no chat template: it reads what the edge writes
        return ContinuationForm.TEXT
    return ContinuationForm.TEXT if writes(text) else ContinuationForm.MESSAGE


async def _rendered(client: HTTPClient, card: ListedModel) -> str:
    body: dict[str, Any] = {"messages": GREETED, "add_generation_prompt": True}
    if card.owned_by == LLAMA:
        return (await client.post(_beside(client, "/apply-template"), body, Rendered)).prompt
    tokens = (await client.post(_beside(client, "/tokenize"), body | {"model": card.id}, TemplateTokens)).tokens
    body = {"model": card.id, "tokens": tokens}
    return (await client.post(_beside(client, "/detokenize"), body, Rendered)).prompt


def _beside(client: HTTPClient, path: str) -> str:
    """The path of a route that lies beside `/v1`, not in it."""
    return f"/..{path}" if client.base_url.endswith("/v1") else path
