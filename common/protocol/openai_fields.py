"""The request fields of OpenAI, vLLM and llama-server that this server does not read; null is as if absent."""

from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

IGNORED = (
    *("user", "metadata", "store", "safety_identifier", "verbosity"),
    *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_prompt", "cache_salt"),
    *("request_id", "session_id", "id_slot", "stream_interval", "return_progress"),
    *("include_reasoning", "truncation_side", "media_io_kwargs", "mm_processor_kwargs", "mm_payload"),
    *("min_keep", "n_keep", "repeat_last_n", "xtc_threshold", "mirostat_tau", "mirostat_eta", "dynatemp_exponent"),
    *("dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "guided_decoding_backend"),
)
"""Fields without effect on an answer, some because they belong to a feature that is off: taken with any value."""
UNSUPPORTED: dict[str, Any] = {
    **dict.fromkeys(
        ("logit_bias", "suffix", "functions", "function_call", "audio", "web_search_options", "moderation")
    ),
    **dict.fromkeys(("structured_outputs", "prediction", "reasoning_effort", "chat_template_kwargs", "chat_template")),
    **dict.fromkeys(
        ("prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "bad_words", "truncate_prompt_tokens")
    ),
    **dict.fromkeys(("prompt_embeds", "documents", "watermarking", "thinking_token_budget", "repetition_detection")),
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "samplers", "grammar", "json_schema")),
    **dict.fromkeys(("lora", "response_fields")),
    **dict.fromkeys(("use_beam_search", "include_stop_str_in_output", "continue_final_message", "echo"), False),
    **dict.fromkeys(("return_tokens_as_token_ids", "return_token_ids", "return_token_offsets"), False),
    **dict.fromkeys(("return_prompt_text", "return_mm_kwargs", "return_tokens", "post_sampling_probs"), False),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), True),
    **dict.fromkeys(("add_special_tokens", "add_generation_prompt"), True),
    **dict.fromkeys(("best_of", "length_penalty", "repeat_penalty", "typical_p"), 1),
    **dict.fromkeys(("routed_experts_prompt_start", "n_probs", "mirostat", "n_indent", "t_max_predict_ms"), 0),
    **dict.fromkeys(("dynatemp_range", "xtc_probability", "dry_multiplier"), 0),
    "top_n_sigma": -1,
    "modalities": ("text",),
}
"""Fields that would change the answer, with their neutral values: refused by name, unless neutral, null or empty.

A request that gives one of them a type of its own supports it.
"""

OWN = frozenset(
    {
        *("mode", "privacy", "private", "use_confidence_check", "use_draft_verify", "use_kv_cache"),
        *("confidence_threshold", "confidence_threshold_reasoning", "product_threshold", "max_draft_tokens"),
        "route_threshold",
        *("objective", "way", "draft_ahead", "lookup", "collaboration"),
    }
)
"""This project's fields, which other servers do not know."""

if TYPE_CHECKING:

    class UnreadFields(Struct):
        """All fields of both tables, of any type."""

else:
    UnreadFields = msgspec.defstruct(
        "UnreadFields",
        [*((name, Any, None) for name in IGNORED), *((name, Any, value) for name, value in UNSUPPORTED.items())],
        kw_only=True,
        omit_defaults=True,
    )


def unsupported(body: UnreadFields) -> str | None:
    """The first unsupported field that is in use; None if there is none."""
    neutral = _neutral_values(type(body))
    return next((name for name, value in neutral.items() if not _is_neutral(getattr(body, name), value)), None)


@cache
def _neutral_values(type_: type[UnreadFields]) -> dict[str, Any]:
    """By the names of UNSUPPORTED that a request does not support after all; it may have another neutral value."""
    found = {field.name: field.default for field in msgspec.structs.fields(type_) if field.type is Any}
    return {name: found[name] for name in UNSUPPORTED if name in found}


def _is_neutral(value: object, default: object) -> bool:
    given = tuple(value) if isinstance(value, list) else value
    return value is None or given == default or (not value and not default)
