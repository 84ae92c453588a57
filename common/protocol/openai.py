"""The OpenAI API as the edge speaks it: requests and the parts of responses. Knows no engine and no HTTP."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from common.errors import RequestError
from common.types import Collaboration, Mode, Objective, Provenance, Sampling, VerificationMode

MAX_CHOICES = 16
"""Answers to one prompt."""
MAX_ANSWERS = 256
"""Answers in one response, to all its prompts."""
MAX_LOGPROBS = 20
"""Tokens whose log probabilities are told at each position."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
INT32 = 2**31 - 1
INT64 = 2**63 - 1
DRAWN_BY = ("temperature", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty")
"""The fields that are `Sampling`'s own, under its names."""

SPLIT_REFUSES = (
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "response_format", "use_draft_verify"),
    *("use_kv_cache", "product_threshold", "max_draft_tokens", "objective", "way", "draft_ahead"),
)
"""Fields that have no meaning, or cannot be honoured, where one model is split."""
NEUTRAL = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}


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


class CollaborationOptions(Struct, forbid_unknown_fields=True):
    """`tokens`: each token of the answer with its source and the edge's confidence."""

    tokens: bool = False


class SourcedToken(Struct):
    """One token of an answer: where it comes from, and the confidence of who drew it, where that is known."""

    token_id: int
    text: str
    source: Provenance
    confidence: float | None


class JsonSchema(Struct):
    name: str
    schema: dict[str, Any] = {}
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """What the answer must be: text, any JSON object, or JSON that a schema allows."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema(self) -> str | None:
        """The JSON schema as text; None for plain text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return '{"type":"object"}'
        if self.json_schema is None:
            raise RequestError("a response_format of type json_schema needs json_schema", param="response_format")
        return msgspec.json.encode(self.json_schema.schema).decode()


class GenerationRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What both endpoints take: OpenAI's fields, vLLM's for sampling, then ours.

    Fields without effect here must be neutral; `user` and those beside it say something about the caller. A field may
    be null, which is its default.
    """

    model: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-INT64, le=INT64)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    response_format: ResponseFormat | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    mode: Mode = Mode.COLLABORATIVE
    privacy: Literal["edge_only"] | None = None
    use_confidence_check: bool | None = None
    use_draft_verify: bool | None = None
    use_kv_cache: bool | None = None
    confidence_threshold: Annotated[float, Meta(ge=0)] | None = None
    product_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] | None = None
    objective: Objective | None = None
    way: VerificationMode | None = None
    draft_ahead: bool | None = None
    collaboration: CollaborationOptions | None = None

    def sampling(self, prompt_tokens: int) -> Sampling:
        """How the answer to a prompt of so many tokens is drawn."""
        given = {name: value for name in DRAWN_BY if (value := getattr(self, name)) is not None}
        return Sampling(
            **{"temperature": 1.0} | given,
            top_k=max(self.top_k or 0, 0),
            json_schema=None if self.response_format is None else self.response_format.schema,
            prompt_tokens=prompt_tokens,
        )

    @property
    def choices(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def stop_strings(self) -> list[str]:
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MAX_STOPS or not all(0 < len(one) <= MAX_STOP_LENGTH for one in strings):
            wanted = f"up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_LENGTH} characters"
            raise RequestError(f"stop takes {wanted}", param="stop")
        return strings

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell at each position; None: no log probabilities at all."""
        raise NotImplementedError

    @property
    def edge_only_field(self) -> str | None:
        """The name of a field in use that only an answer of the edge alone can honour, if there is one."""
        asked = {"min_p": bool(self.min_p), "logprobs": self.wanted_logprobs is not None}
        return next((name for name, wanted in asked.items() if wanted), None)

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a field that would silently have no effect."""
        if self.logit_bias:
            raise RequestError("logit_bias is not supported by the edge server", param="logit_bias")
        if self.privacy and self.mode is Mode.CLOUD_ONLY:
            raise RequestError('privacy "edge_only" contradicts mode "cloud_only"', param="privacy")
        if self.mode is Mode.SPLIT:
            self._refuse_where_split()
        elif self.confidence_threshold is not None and self.confidence_threshold > 1:
            says = 'confidence_threshold is above 1, which only mode "split" knows: no exit is taken'
            raise RequestError(says, param="confidence_threshold")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream", param="stream_options")

    def _refuse_where_split(self) -> None:
        """A cloud that is sent hidden states does not know the tokens that penalties and schemas look at."""
        if (name := self.edge_only_field) and name != "min_p":
            raise RequestError(f'{name} is not supported in mode "split"', param=name)
        for name in SPLIT_REFUSES:
            if getattr(self, name) not in (None, NEUTRAL.get(name)):
                raise RequestError(f'{name} is not supported in mode "split"', param=name)


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @property
    def wanted_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.tools:
            raise RequestError("tools are not supported by the edge server", param="tools")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs", param="top_logprobs")


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/completions; `prompt` is text or token ids, or a list of these, each answered by itself."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one; raises RequestError for a mixture."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        found = [part for part in self.prompt if not isinstance(part, int)]
        if not found or len(found) < len(self.prompt) or len({type(part) for part in found}) > 1:
            raise RequestError("prompt must be text, token ids, or a list of one of these", param="prompt")
        if len(found) * self.choices > MAX_ANSWERS:
            raise RequestError(f"one request may ask for {MAX_ANSWERS} answers in all", param="prompt")
        return found

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def edge_only_field(self) -> str | None:
        return super().edge_only_field or ("echo" if self.echo else None)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.best_of not in (None, 1):
            raise RequestError("best_of is not supported by the edge server; ask for n answers", param="best_of")
        if self.suffix:
            raise RequestError("suffix is not supported by the edge server", param="suffix")
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens may be 0 only with echo", param="max_tokens")


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
