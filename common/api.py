"""The OpenAI API as the edge speaks it: requests and the parts of responses. Knows no engine and no HTTP."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from common.errors import RequestError
from common.types import Collaboration, Mode, Provenance, Sampling

MAX_CHOICES = 16


class TextPart(Struct):
    type: str
    text: str = ""


class Message(Struct, omit_defaults=True):
    """One turn of a chat; content is text, or a list of text parts."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        parts = self.content or []
        other = next((p.type for p in parts if p.type != "text"), None)
        if other is not None:
            raise RequestError(f"content of type {other!r} is not supported, only text", param="messages")
        return "".join(p.text for p in parts)


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False


class GenerationRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What both endpoints take: OpenAI's fields, then ours; fields without effect here must be neutral."""

    model: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=-1)] = 0
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] | None = None
    mode: Mode = Mode.COLLABORATIVE
    use_confidence_check: bool | None = None
    use_draft_verify: bool | None = None
    use_kv_cache: bool | None = None
    confidence_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=max(self.top_k, 0), seed=self.seed)

    @property
    def stop_strings(self) -> list[str]:
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > 4 or "" in strings:
            raise RequestError("stop takes up to 4 strings, none of them empty", param="stop")
        return strings

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a field that would silently have no effect."""
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported by the edge server", param=name)


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.logprobs:
            raise RequestError("logprobs is not supported by the edge server", param="logprobs")


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/completions; `prompt` is text or token ids."""

    prompt: str | list[int]
    max_tokens: Annotated[int, Meta(ge=1)] = 16
    echo: bool = False
    logprobs: int | None = None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        for name in ("echo", "logprobs"):
            if getattr(self, name):
                raise RequestError(f"{name} is not supported by the edge server", param=name)


class TokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Body of POST /tokenize, as vLLM takes it: `prompt` as it stands, or `messages` in the chat template."""

    model: str = ""
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class TokenizeReply(Struct, kw_only=True):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    model: str = ""
    tokens: list[int]


class DetokenizeReply(Struct):
    prompt: str


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Delta(Struct):
    content: str = ""


class ChunkChoice(Struct):
    delta: Delta
    provenance: Provenance | None = None
    finish_reason: str | None = None


class ChatChunk(Struct, kw_only=True):
    """One event of a streamed chat answer, as far as our own clients read it."""

    choices: list[ChunkChoice] = []
    usage: Usage | None = None
    collaboration: Collaboration | None = None


def dump(value: object) -> Any:
    """A struct as plain JSON types, to be put inside a response."""
    return msgspec.to_builtins(value)
