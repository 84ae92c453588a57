"""This project's own request fields, which both dialects take, and the chat request that a dialect's body becomes."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from common.errors import RequestError
from common.protocol.codec import convert
from common.protocol.openai import ChatRequest


class CollaborationFields(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """As in a chat request; the chat request checks them."""

    mode: str | None = None
    privacy: str | None = None
    private: bool | None = None
    use_confidence_check: bool | None = None
    use_draft_verify: bool | None = None
    use_kv_cache: bool | None = None
    confidence_threshold: float | None = None
    confidence_threshold_reasoning: float | None = None
    product_threshold: float | None = None
    max_draft_tokens: int | None = None
    route_threshold: float | None = None
    objective: str | None = None
    way: str | None = None
    draft_ahead: bool | None = None
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def own_fields(self) -> dict[str, Any]:
        """Those that are set."""
        values = {name: getattr(self, name) for name in CollaborationFields.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


def chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """The chat request of these fields, of which null ones are left out; raises RequestError for a wrong value."""
    return convert({key: value for key, value in fields.items() if value is not None}, ChatRequest)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name a field as the dialect does: `names` has the fields of a chat that the dialect calls otherwise."""
    try:
        yield
    except RequestError as error:
        field = re.match(r"\w+", error.param or "")
        if field and error.param:
            error.param = names.get(field[0], field[0]) + error.param[field.end() :]
        raise
