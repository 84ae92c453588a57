"""What a request says about the replica that it belongs to: its session, its prompt's token ids, its cache salt."""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from cloud.kv_cache import ID
from common.errors import RequestError
from common.protocol import codec
from common.protocol.stream_frames import StartFrame

MIN_TEXT_BYTES = 1024
"""Bodies of text below this are not tokenized for the choice: reading such a prompt again costs no more than asking."""


class RequestKey(NamedTuple):
    """Empty fields say nothing; `session` includes its tenant, and `text` is what /tokenize turns into token ids."""

    session: str = ""
    token_ids: Sequence[int] = ()
    salt: str = ""
    text: dict[str, Any] | None = None


NO_KEY = RequestKey()


class KeyedRound(Struct):
    """The fields of a verify that tell where it belongs; all others are skipped."""

    session: str = ""
    prefix_length: int = 0
    new_token_ids: list[int] = []
    tenant: str = ""


class KeyedBatch(Struct):
    """The same of POST /verify/batch, which belongs where its first round does."""

    requests: list[KeyedRound]


class KeyedGeneration(Struct):
    """The same of the routes that generate text; the fields of a conversation are those of /tokenize."""

    prompt: str | list[int] | UnsetType = UNSET
    messages: list[Any] | UnsetType = UNSET
    tools: Any = UNSET
    chat_template_kwargs: Any = UNSET
    add_generation_prompt: Any = UNSET
    continue_final_message: Any = UNSET
    cache_salt: str = ""


def key_of(path: str, body: bytes, content_type: str, tenant: str) -> RequestKey:
    """The key of a POST; NO_KEY for one that cannot be read, which any replica refuses as it should."""
    try:
        match path:
            case "/verify":
                return _of_round(codec.decode(body, KeyedRound, content_type), tenant)
            case "/verify/batch":
                batch = codec.decode(body, KeyedBatch, content_type)
                return _of_round(batch.requests[0], tenant) if batch.requests else NO_KEY
            case "/v1/completions" | "/v1/chat/completions":
                generation = codec.decode(body, KeyedGeneration, content_type)
                return _of_generation(generation, tenant, len(body) >= MIN_TEXT_BYTES)
    except RequestError:
        pass
    return NO_KEY


def key_of_start(start: StartFrame, tenant: str) -> RequestKey:
    """The key of one answer of GET /stream."""
    return RequestKey(token_ids=_ids(start.token_ids), salt=tenant + start.tenant)


def _ids(given: list[int]) -> Sequence[int]:
    """Token ids for the choice; none where one has more than 64 bits, which any replica refuses as it should."""
    try:
        return array(ID.typecode, given)
    except OverflowError:
        return ()


def _of_round(round: KeyedRound, tenant: str) -> RequestKey:
    salt = tenant + round.tenant
    session = f"{salt}/{round.session}" if round.session else ""
    return RequestKey(session, () if round.prefix_length else _ids(round.new_token_ids), salt)


def _of_generation(body: KeyedGeneration, tenant: str, long: bool) -> RequestKey:
    salt = tenant + body.cache_salt
    if isinstance(body.prompt, list):
        return RequestKey(token_ids=_ids(body.prompt), salt=salt)
    names = ("prompt",) if body.messages is UNSET else KeyedGeneration.__struct_fields__[1:-1]
    text = {name: value for name in names if (value := getattr(body, name)) is not UNSET}
    return RequestKey(salt=salt, text=text if long and text else None)
