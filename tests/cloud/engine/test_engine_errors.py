"""Every engine starts with the model runner that the plugin needs; however vLLM ends a request, the error is ours."""

import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from vllm.exceptions import GenerationError, GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from cloud.engine.base import VLLMEngine
from cloud.engine.engine import CloudEngine
from cloud.routes.serving import REFUSED
from cloud.split.engine import TailEngine
from common.errors import EngineError, FrameworkError, RequestError, StartError
from tests.conftest import CLOUD_MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

BUSY = GracefulHTTPError("busy", cast(Any, 503))


class EndedLLM:
    """Ends every request with an error, or without a word."""

    observability_config = SimpleNamespace(otlp_traces_endpoint=None)

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    async def generate(self, *_: object, **__: object) -> AsyncGenerator[Any, None]:
        if self.error:
            raise self.error
        for output in ():
            yield output


async def parts() -> AsyncGenerator[Any, None]:
    for part in ():
        yield part


def engine_of(error: Exception | None) -> VLLMEngine:
    engine = VLLMEngine(None)
    engine._llm = cast(AsyncLLM, EndedLLM(error))
    return engine


@pytest.mark.parametrize("kind", [CloudEngine, TailEngine])
async def test_every_kind_of_engine_starts_with_the_first_model_runner(
    kind: Callable[[Any], VLLMEngine], demo_split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    seen: list[str | None] = []

    def start(_: object) -> AsyncLLM:
        seen.append(os.environ.get("VLLM_USE_V2_MODEL_RUNNER"))
        raise RuntimeError("seen")

    monkeypatch.setattr(AsyncLLM, "from_engine_args", start)
    with pytest.raises(StartError, match="seen"):
        await kind(str(CLOUD_MODEL) if kind is CloudEngine else demo_split / "tail").start()
    assert seen == ["0"]
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "1"


async def test_a_live_request_that_vllm_ends_is_an_error_of_the_engine() -> None:
    with pytest.raises(EngineError, match="ended the live request"):
        await anext(engine_of(None).generate(parts(), SamplingParams()))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (EngineDeadError(), EngineError),
        (EngineGenerateError(), EngineError),
        (GenerationError("paused"), EngineError),
        (BUSY, EngineError),
        (VLLMValidationError("wrong"), RequestError),
        (ValueError("wrong"), RequestError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_each_error_of_vllm_becomes_ours(theirs: Exception, ours: type[FrameworkError]) -> None:
    with pytest.raises(ours):
        await anext(engine_of(theirs).generate([1], SamplingParams()))


@pytest.mark.parametrize("option", [{"min_p": 0.1}, {"logit_bias": {5: 1.0}}], ids=str)
async def test_vllm_refuses_beside_speculation_what_is_refused_by_name(
    cloud_engine: CloudEngine, option: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="not yet supported with speculative decoding"):
        await anext(cloud_engine.generate([1], SamplingParams(max_tokens=1, **option)))
    assert set(option) <= set(REFUSED)
