"""Reads the body of POST /infill, llama-server's, and converts it to a text completion."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from common.protocol.openai import MAX_CHOICES, CompletionRequest, GenerationRequest
from common.protocol.openai_sampling import INT32_MAX
from edge.text.fill_in import FillIn


class ExtraText(Struct):
    """A part of another file."""

    text: str
    filename: str = "tmp"


class InfillRequest(GenerationRequest, kw_only=True):
    """Body of POST /infill: the text between `input_prefix` and `input_suffix`, which begins with `prompt`.

    `n_predict` 0 reads the prompt and writes nothing, so that a later request finds its KV.
    """

    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraText] | None = None
    prompt: str | None = None
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    n_indent: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    t_max_predict_ms: Annotated[float, Meta(ge=0)] | None = None
    t_max_prompt_ms: float | None = None
    """Taken without effect, as in llama-server."""
    response_fields: list[str] | None = None
    """Names of the only fields that are returned; `a/b` is the field `b` of the object `a`."""

    @property
    def max_predicted(self) -> int | None:
        """Tokens of the answer; None: no limit."""
        given = self.max_tokens if self.max_tokens is not None else self.n_predict
        return None if given == -1 else given

    @property
    def fill_in(self) -> FillIn:
        files = [(one.filename, one.text) for one in self.input_extra or ()]
        return FillIn(self.input_prefix, self.input_suffix, self.prompt or "", files)

    @property
    def wanted_logprobs(self) -> int | None:
        return None

    def completion(self, prompt: list[int]) -> CompletionRequest:
        """The text completion of `prompt`."""
        own = {name for name in InfillRequest.__annotations__ if name in CompletionRequest.__struct_fields__}
        fields: dict[str, Any] = {name: getattr(self, name) for name in GenerationRequest.__struct_fields__}
        limit = self.max_predicted
        length = {"n_predict": -1} if limit is None else {"n_predict": None, "max_tokens": max(limit, 1)}
        more = {"prompt": prompt, "timings_per_token": True, "n": self.n_cmpl or self.n}
        return CompletionRequest(**{name: fields[name] for name in fields.keys() - own} | length | more)
