"""Models are ways to answer: what a request's `model` says about its mode, and what /v1/models lists."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from common.errors import NotFoundError
from common.protocol.openai import GenerationRequest
from common.types import Mode
from edge.api.context import ServerContext

BODY = TypeVar("BODY", bound=GenerationRequest)


@dataclass(frozen=True, slots=True)
class Way:
    """What the choice of a name sets, unless the request sets it itself; None: the server's default."""

    mode: Mode | None = None
    use_confidence_check: bool | None = None
    use_draft_verify: bool | None = None


WAYS = {
    "auto": Way(),
    "lossless": Way(Mode.COLLABORATIVE, use_confidence_check=False, use_draft_verify=True),
    "gated": Way(Mode.COLLABORATIVE, use_confidence_check=True, use_draft_verify=True),
    "edge": Way(Mode.EDGE_ONLY),
    "cloud": Way(Mode.CLOUD_ONLY),
    "route": Way(Mode.ROUTE),
    "split": Way(Mode.SPLIT),
}
"""Names that every client can choose as its model; a model's own name wins over them."""


def named(context: ServerContext) -> dict[str, Way]:
    """All names that a request may have as its model, the default first."""
    ways = {context.engine.model_name: Way()}
    if context.split is not None:
        ways.setdefault(context.split.segments.model_name, Way(Mode.SPLIT))
    if cloud := context.vocabulary.cloud_model:
        ways.setdefault(cloud, Way(Mode.CLOUD_ONLY))
    missing = {Mode.SPLIT: context.split is None, Mode.ROUTE: context.router is None}
    for name, way in WAYS.items():
        if not (way.mode and missing.get(way.mode)):
            ways.setdefault(name, way)
    for alias, name in context.config.inference.aliases.items():
        if name in ways:
            ways.setdefault(alias, ways[name])
    return ways


def applied(body: BODY, context: ServerContext) -> BODY:
    """`body` with the mode and the toggles that its model's name sets; raises NotFoundError for an unknown name."""
    way = find(body.model, context) if body.model else Way()
    if body.mode is not None:
        return body  # the name's toggles belong to the name's mode
    default = context.config.inference.mode
    mode = way.mode or (default if default is Mode.SPLIT else None)  # in split no other mode can take its place
    wanted = {"mode": mode, "use_confidence_check": way.use_confidence_check, "use_draft_verify": way.use_draft_verify}
    return msgspec.structs.replace(
        body, **{name: value for name, value in wanted.items() if getattr(body, name) is None}
    )


def find(name: str, context: ServerContext) -> Way:
    ways = named(context)
    if name not in ways:
        raise NotFoundError(f"no model {name!r} here; there is {', '.join(map(repr, ways))}", param="model")
    return ways[name]


def cards(context: ServerContext) -> Iterator[dict[str, str | int]]:
    """The entries of /v1/models."""
    for name, way in named(context).items():
        mode = way.mode or context.config.inference.mode
        length = context.model(mode).context_length
        owner = "cloud" if name == context.vocabulary.cloud_model != context.engine.model_name else "edge"
        card: dict[str, str | int] = {"id": name, "object": "model", "owned_by": owner}
        yield card | {"created": context.started_at, "max_model_len": length}
    if (embeds := context.embeddings) is not None:
        card = {"id": embeds.model_name, "object": "model", "owned_by": "edge", "created": context.started_at}
        yield card | {"max_model_len": embeds.model.context_length}
