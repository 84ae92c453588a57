"""Defines the messages of POST /v1/embeddings."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from common.errors import RequestError

MAX_INPUTS = 2048
"""Texts in one request, as OpenAI has it."""


class EmbeddingsRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /v1/embeddings; `input` is a text, its token ids, or a list of one of these."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    """`base64`: little-endian float32."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """The first so many of them, of length 1 again: for models that were trained for it."""
    user: Any = None
    """Without effect."""

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs as a list; raises RequestError for an empty one, or a mixture of texts and token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and all(isinstance(part, int) for part in self.input):
            return [[part for part in self.input if isinstance(part, int)]]
        inputs = [part for part in self.input if not isinstance(part, int)]
        if not inputs or len(inputs) < len(self.input) or len({type(part) for part in inputs}) > 1:
            raise RequestError("input must be a text, token ids, or a list of one of these", param="input")
        if len(inputs) > MAX_INPUTS:
            raise RequestError(f"input takes at most {MAX_INPUTS} texts", param="input")
        return inputs


class Embedding(Struct, kw_only=True):
    """The vector of one input."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(Struct):
    """Tokens of all inputs; nothing is drawn."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(Struct, kw_only=True):
    """Reply to POST /v1/embeddings, in the order of the inputs."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
