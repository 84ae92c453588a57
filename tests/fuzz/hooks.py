"""Loaded by schemathesis: keeps answers short, so that the time goes into many requests."""

from typing import Any

import schemathesis

MAX_TOKENS = 12
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """An answer may fill the context, which takes a minute on a busy machine."""
    body = case.body
    if not isinstance(body, dict):
        return
    for limits in [body, *body["requests"]] if isinstance(body.get("requests"), list) else [body]:
        if isinstance(limits, dict):
            _shorten(limits)
    if case.path == "/v1/responses" and body.get("max_output_tokens") is None:
        body["max_output_tokens"] = MAX_TOKENS


def _shorten(body: dict[str, Any]) -> None:
    for name in LIMITS:
        if isinstance(body.get(name), int) and body[name] > MAX_TOKENS:
            body[name] = MAX_TOKENS
    if body.get("messages") and not any(body.get(name) for name in LIMITS):
        body["max_tokens"] = MAX_TOKENS
