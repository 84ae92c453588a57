"""The edge takes every field that vLLM takes, at vLLM's default and as null."""

from typing import Any

import pytest
from pydantic_core import PydanticUndefined
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest as VllmChatRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest as VllmCompletionRequest

from common.protocol import codec
from common.protocol.openai import ChatRequest, CompletionRequest, GenerationRequest
from tests.support.edge_calls import CHAT, PLAIN

VLLM = [(ChatRequest, VllmChatRequest, CHAT), (CompletionRequest, VllmCompletionRequest, PLAIN)]


@pytest.mark.parametrize(("ours", "theirs", "base"), VLLM, ids=["chat", "text"])
def test_every_field_of_vllm_is_known(ours: Any, theirs: Any, base: dict[str, Any]) -> None:
    for name, field in theirs.model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        for value in {None, default} if isinstance(default, int | float | str) else (None, default):
            if name not in ("messages", "prompt"):
                request: GenerationRequest = codec.decode(codec.encode(base | {name: value}), ours)
                request.refuse_unsupported()
