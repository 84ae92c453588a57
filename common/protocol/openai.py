"""Defines and checks the OpenAI API requests that the edge accepts."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from common.errors import RequestError
from common.protocol.openai_options import CollaborationOptions, ResponseFormat, StreamOptions
from common.types import Mode, Objective, Sampling, Seed, VerificationMode

MAX_CHOICES = 16
"""Answers to one prompt."""
MAX_ANSWERS = 256
"""Answers in one response, to all its prompts."""
MAX_LOGPROBS = 20
"""Likeliest tokens whose log probabilities are returned at each position."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
"""Characters of one stop string."""
INT32_MAX = 2**31 - 1
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Request fields that have the same name in `Sampling`."""

REFUSED_IN_SPLIT = (
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "response_format", "use_draft_verify"),
    *("use_kv_cache", "product_threshold", "max_draft_tokens", "objective", "way", "draft_ahead"),
)
"""Fields that mode split does not support, unless they are null or have their neutral value."""
NEUTRAL_VALUES = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}


class TextPart(Struct):
    """One part of a message's content; only `type` "text" is supported."""

    type: str
    text: str = ""


class Message(Struct, omit_defaults=True):
    """One turn of a chat."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; raises RequestError for parts that are not text."""
        if isinstance(self.content, str):
            return self.content
        parts = self.content or []
        unsupported = next((p.type for p in parts if p.type != "text"), None)
        if unsupported is not None:
            raise RequestError(f"content of type {unsupported!r} is not supported, only text", param="messages")
        return "".join(p.text for p in parts)


class GenerationRequest(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The fields of both endpoints: OpenAI's, vLLM's for sampling, then this project's; null means the default.

    Unsupported fields must have a neutral value; see `refuse_unsupported`. `user`, `metadata`, `store`,
    `service_tier`, `safety_identifier` and `prompt_cache_key` are accepted and ignored.
    """

    model: str = ""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Seed | None = None
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
        """The sampling parameters for the answer to a prompt of `prompt_tokens` tokens."""
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        return Sampling(
            **{"temperature": 1.0} | given,
            top_k=max(self.top_k or 0, 0),
            json_schema=None if self.response_format is None else self.response_format.schema,
            prompt_tokens=prompt_tokens,
        )

    @property
    def choices(self) -> int:
        """The number of answers to each prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list; raises RequestError for too many strings, or one that is empty or too long."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MAX_STOPS or not all(0 < len(string) <= MAX_STOP_LENGTH for string in strings):
            allowed = f"up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_LENGTH} characters"
            raise RequestError(f"stop takes {allowed}", param="stop")
        return strings

    @property
    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to return at each position; None: no log probabilities at all."""
        raise NotImplementedError

    @property
    def edge_only_field(self) -> str | None:
        """The name of a field in use that only mode edge_only supports; None if there is none."""
        in_use = {"min_p": bool(self.min_p), "logprobs": self.wanted_logprobs is not None}
        return next((name for name, used in in_use.items() if used), None)

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a field that would have no effect."""
        if self.logit_bias:
            raise RequestError("logit_bias is not supported by the edge server", param="logit_bias")
        if self.privacy and self.mode is Mode.CLOUD_ONLY:
            raise RequestError('privacy "edge_only" contradicts mode "cloud_only"', param="privacy")
        if self.mode is Mode.SPLIT:
            self._refuse_unsupported_in_split()
        elif self.confidence_threshold is not None and self.confidence_threshold > 1:
            message = 'confidence_threshold is above 1, which only mode "split" allows: no exit is taken'
            raise RequestError(message, param="confidence_threshold")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream", param="stream_options")

    def _refuse_unsupported_in_split(self) -> None:
        """The cloud gets hidden states, not the tokens that penalties and JSON schemas need."""
        if (name := self.edge_only_field) and name != "min_p":
            raise RequestError(f'{name} is not supported in mode "split"', param=name)
        for name in REFUSED_IN_SPLIT:
            if getattr(self, name) not in (None, NEUTRAL_VALUES.get(name)):
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
    """Body of POST /v1/completions; `prompt` is text, token ids, or a list of one of these, one answer each."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list; raises RequestError for a mixture of text and token ids, or too many answers."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        prompts = [part for part in self.prompt if not isinstance(part, int)]
        if not prompts or len(prompts) < len(self.prompt) or len({type(part) for part in prompts}) > 1:
            raise RequestError("prompt must be text, token ids, or a list of one of these", param="prompt")
        if len(prompts) * self.choices > MAX_ANSWERS:
            raise RequestError(f"one request may ask for {MAX_ANSWERS} answers in all", param="prompt")
        return prompts

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
