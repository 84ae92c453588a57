"""Defines and checks the OpenAI API requests that the edge accepts."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from common.errors import RequestError, UnsupportedError
from common.protocol.content.openai_content import Message, Prediction, media_in
from common.protocol.content.openai_options import CollaborationOptions, ReasoningEffort, ServiceTier, StreamOptions
from common.protocol.openai_fields import unsupported
from common.protocol.openai_sampling import INT32_MAX, SamplingFields
from common.protocol.openai_tools import Toolset, toolset
from common.types import GrammarSpec, Mode, Objective, VerificationMode

__all__ = ["ChatRequest", "CompletionRequest", "GenerationRequest", "Message", "Prediction"]

MAX_CHOICES = 16
"""Answers to one prompt."""
MAX_ANSWERS = 256
"""Answers in one response, to all its prompts."""
MAX_LOGPROBS = 20
"""Likeliest tokens whose log probabilities are returned at each position."""
MAX_STOPS = 16
MAX_STOP_IDS = 64
MAX_STOP_LENGTH = 1000
"""Characters of one stop string."""
REFUSED_IN_SPLIT = (
    *("repetition_penalty", "response_format", "structured_outputs"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("use_draft_verify", "product_threshold", "max_draft_tokens", "objective", "way", "draft_ahead"),
    *("lookup", "route_threshold", "ignore_eos", "min_tokens"),
)
"""Fields that mode split does not support, unless they are null or have their neutral value."""
NEUTRAL_VALUES = {"repetition_penalty": 1, "ignore_eos": False, "min_tokens": 0}


class GenerationRequest(SamplingFields, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The fields of both endpoints: OpenAI's, vLLM's, llama-server's, then this project's; null means the default.

    Those that are taken without effect, or must have a neutral value, are in common/protocol/openai_fields.py.
    """

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop_token_ids: Annotated[list[int], Meta(max_length=MAX_STOP_IDS)] | None = None
    n_predict: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    """llama-server's `max_tokens`; -1: no limit."""
    timings_per_token: bool | None = None
    priority: Annotated[int, Meta(ge=-INT32_MAX, le=INT32_MAX)] | None = None
    """vLLM's: lower is earlier. It orders the requests of one key; one above 0 also waits until no other one does."""
    service_tier: ServiceTier | None = None
    """OpenAI's; `flex` is as a priority of 1, any other has no effect."""
    mode: Mode | None = None
    privacy: Literal["edge_only"] | None = None
    private: bool | None = None
    """true: as `privacy` "edge_only"."""
    use_confidence_check: bool | None = None
    use_draft_verify: bool | None = None
    use_kv_cache: bool | None = None
    confidence_threshold: Annotated[float, Meta(ge=0)] | None = None
    confidence_threshold_reasoning: Annotated[float, Meta(ge=0, le=1)] | None = None
    product_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] | None = None
    route_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Mode route: the cloud answers from this score of the router on."""
    objective: Objective | None = None
    way: VerificationMode | None = None
    draft_ahead: bool | None = None
    lookup: bool | None = None
    collaboration: CollaborationOptions | None = None

    @property
    def queue_priority(self) -> int:
        """The priority by which the request waits for its turn."""
        return int(self.service_tier == "flex") if self.priority is None else self.priority

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
    def cloud_only_part(self) -> str | None:
        """What of the request only a cloud can read: the type of a part of a message; None if there is none."""
        return None

    @property
    def edge_only_field(self) -> str | None:
        """The name of a field in use that only the edge alone supports; None if there is none."""
        return "min_p" if self._sampled("min_p") else "logit_bias" if self.logit_bias else None

    @property
    def one_model_field(self) -> str | None:
        """The name of a field in use for which one model must give the whole answer, if the cloud verifies nothing."""
        if self.wanted_logprobs is not None:
            return "logprobs"
        return "response_format" if self.grammar_spec is not None else None

    def refuse_unsupported(self) -> None:
        """Raises RequestError for a field that would have no effect."""
        if name := unsupported(self):
            raise UnsupportedError(f"{name} is not supported by the edge server", param=name)
        if self.mode is Mode.SPLIT:
            self._refuse_unsupported_in_split()
        elif self.confidence_threshold is not None and self.confidence_threshold > 1:
            message = 'confidence_threshold is above 1, which only mode "split" allows: no exit is taken'
            raise RequestError(message, param="confidence_threshold")
        if self.ignore_eos and self.grammar_spec is not None:
            raise RequestError("ignore_eos cannot be had with a format, which ends the answer", param="ignore_eos")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream", param="stream_options")

    def _refuse_unsupported_in_split(self) -> None:
        """The cloud gets hidden states, not the tokens that repetition penalties and grammars need."""
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
    add_special_tokens: Any = False
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    """Has no effect where no draft is verified."""
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: ReasoningEffort | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    """Tokens of the model's thoughts, which end there; -1: no limit."""

    @property
    def cloud_only_part(self) -> str | None:
        return media_in([message.content for message in self.messages])

    @property
    def toolset(self) -> Toolset:
        """The tools that the model may call; raises RequestError that names the wrong field."""
        return toolset(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        return self.toolset.grammar(super().grammar_spec)

    @property
    def template_variables(self) -> dict[str, Any]:
        """Variables for the chat template; what it does not read has no effect."""
        own: dict[str, Any] = {"reasoning_effort": self.reasoning_effort, "enable_thinking": self.enable_thinking}
        if self.reasoning_effort == "none":
            own = {"enable_thinking": False} | own
        return {name: value for name, value in own.items() if value is not None} | (self.chat_template_kwargs or {})

    @property
    def wanted_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        tools = self.toolset
        if tools.forced and self.mode is Mode.SPLIT:
            raise RequestError('a tool call cannot be forced in mode "split"', param="tool_choice")
        if self.thinking_token_budget not in (None, -1) and self.cloud_only_part:
            raise RequestError(f"a budget cannot be had beside {self.cloud_only_part}", param="thinking_token_budget")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs", param="top_logprobs")


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of POST /v1/completions; `prompt` is text, token ids, or a list of one of these, one answer each."""

    prompt: str | list[str | int | list[int]]
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    """The text after the answer, for models that fill in."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

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
    def text_before(self) -> str:
        """The text before the gap that `suffix` ends; raises RequestError for any other prompt than one text."""
        if not isinstance(self.prompt, str) or self.echo:
            raise RequestError("suffix needs a prompt that is one text, and no echo", param="suffix")
        return self.prompt

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.echo and self.mode is Mode.SPLIT:
            raise RequestError('echo is not supported in mode "split"', param="echo")
        if self.max_tokens == 0 and not self.echo:
            raise RequestError("max_tokens may be 0 only with echo", param="max_tokens")
