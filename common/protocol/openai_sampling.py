"""The fields of requests that say how tokens are drawn, and what the answer must match."""

import re
from typing import Annotated, Any

from msgspec import Meta

from common.errors import RequestError
from common.protocol.content.openai_options import GuidedFields, ResponseFormat, StructuredOutputs
from common.types import GrammarSpec, Sampling, Seed

INT32_MAX = 2**31 - 1
MAX_BIASES = 1024
"""Tokens in `logit_bias`."""
LARGEST_BIAS = 100
SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
    "min_tokens",
)
"""Request fields that have the same name in `Sampling`."""

PENALTIES = "penalties"
SAMPLERS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p")},
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), PENALTIES),
}
"""llama-server's sampler that reads each field."""


class SamplingFields(GuidedFields, kw_only=True, omit_defaults=True):
    """OpenAI's, vLLM's and llama-server's; null means the default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=INT32_MAX)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    logit_bias: (
        Annotated[dict[str, Annotated[float, Meta(ge=-LARGEST_BIAS, le=LARGEST_BIAS)]], Meta(max_length=MAX_BIASES)]
        | None
    ) = None
    """By the ids of tokens."""
    seed: Seed | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=INT32_MAX)] | None = None
    samplers: list[str] | None = None
    """llama-server's: the fields of samplers that are not named have no effect. Their order is always the same."""

    def sampling(self, prompt_tokens: int) -> Sampling:
        """The sampling parameters for the answer to a prompt of `prompt_tokens` tokens."""
        given = {name: value for name in SAMPLING_FIELDS if (value := self._sampled(name)) is not None}
        return Sampling(
            **{"temperature": 1.0} | given,
            top_k=max(self._sampled("top_k") or 0, 0),
            grammar=self.grammar_spec,
            prompt_tokens=prompt_tokens,
            logit_bias=self.biases,
        )

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` by token ids; raises RequestError for a name that is none."""
        if not all(re.fullmatch("[0-9]{1,9}", token) for token in self.logit_bias or ()):
            raise RequestError("logit_bias takes token ids as names", param="logit_bias")
        return tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())

    def _sampled(self, name: str) -> Any:
        """The value of a sampling field; None where `samplers` leaves its sampler out."""
        left_out = self.samplers is not None and name in SAMPLERS and SAMPLERS[name] not in self.samplers
        return None if left_out else getattr(self, name)

    @property
    def grammar_spec(self) -> GrammarSpec | None:
        """What the answer must match; None for any text. Raises RequestError for a wrong or a second one."""
        by_format = None if self.response_format is None else self.response_format.grammar
        outputs = self.structured_outputs or self.guided
        if outputs is None:
            return by_format
        if by_format is not None:
            raise RequestError("structured_outputs and response_format exclude each other", param="structured_outputs")
        return outputs.spec
