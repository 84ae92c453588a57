"""Owns vLLM's AsyncLLM: starts it, has it generate, stops it. Knows nothing of drafts, sessions or HTTP."""

# ruff: noqa: E402 - vLLM reads its environment when it is imported.
import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

for _name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from starlette.datastructures import State
from vllm.config import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.reader import Counter, Gauge, get_metrics_snapshot

from cloud import engine_args, vllm_version
from cloud.kv_cache import VLLMKVCache
from cloud.kv_events import KVEvents, kv_events_args
from cloud.process_tree import ProcessTree
from common.errors import EngineError, RequestError, StartError

VLLM_METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
}


class CloudEngine:
    """vLLM with the verify scheduler; works from `start` to `close`, and can then be started again."""

    def __init__(self, model: str, max_draft_tokens: int = 16, args: Mapping[str, object] = {}) -> None:
        """`args` are vLLM's own, by their names in Python; raises ConfigError for one that vLLM does not know."""
        self.model = model
        self.max_draft_tokens = max_draft_tokens
        self._args = engine_args.parse(model, max_draft_tokens, args)
        self._llm: AsyncLLM | None = None
        self.kv_cache = VLLMKVCache()
        """What the prefix caches of the engine's replicas hold, as of their last events."""
        self._followers: list[KVEvents] = []
        self._directory: TemporaryDirectory[str] | None = None
        self._processes: ProcessTree | None = None
        self._serving: State | None = None

    async def start(self) -> None:
        """Returns when the model answers (half a minute); raises StartError, and then nothing is left."""
        try:
            llm = await self._started()
            serving = State()
            await init_app_state(llm, serving, self._args, await llm.get_supported_tasks())
            self._processes = ProcessTree(process.pid for process in _processes(llm))
            self._follow(llm)
            self._serving = serving
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the engine process; requests still running fail with EngineError. Does nothing when not started."""
        self._serving = None
        while self._followers:
            await self._followers.pop().close()
        if self._llm is not None:
            llm, self._llm = self._llm, None
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would log the end of the engine process as a crash
            llm.output_processor.propagate_error(EngineDeadError())
            await asyncio.to_thread(llm.shutdown)
            llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it open
        if self._directory is not None:
            self._directory.cleanup()

    async def _started(self) -> AsyncLLM:
        self._directory = TemporaryDirectory(prefix="cloud-")  # mode 0700: events tell the tokens of all tenants
        # Not the loop's default executor, which would wait for a start that was given up.
        starting: Future[AsyncLLM] = _in_thread(_start, self._args, Path(self._directory.name))
        try:
            self._llm = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda started: started.exception() or started.result().shutdown())
            raise
        return self._llm

    def _follow(self, llm: AsyncLLM) -> None:
        for rank, source in (llm.get_kv_event_sources() or {}).items():
            follower = KVEvents(self.kv_cache, str(rank), source.endpoint, source.replay_endpoint)
            follower.start()
            self._followers.append(follower)

    def kill(self) -> None:
        """Ends the engine's processes without asking them; `close` then frees what they had here."""
        if self._processes is not None:
            self._processes.kill()

    async def ping(self) -> None:
        """Returns when the engine's loop has answered, which it does between two steps."""
        await self._running.engine_core.is_sleeping_async()

    async def check_health(self) -> None:
        """Raises EngineError when the engine is not up, or has died."""
        try:
            await self._running.check_health()
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error

    async def generate(
        self,
        prompt: list[int] | AsyncGenerator[StreamingInput, None],
        params: SamplingParams,
        request_id: str | None = None,
        cache_salt: str | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's outputs as they come; closing this, or cancelling what waits for it, aborts the request in vLLM.

        A prompt that comes in parts is one resident request. Raises RequestError or EngineError.
        """
        # vLLM extends the list it is given; and one HTTP request may become several of vLLM's, also at the same time.
        given = tokens_input(list(prompt), cache_salt=cache_salt) if isinstance(prompt, list) else prompt
        unique_id = f"{request_id or 'verify'}-{uuid.uuid4().hex}"
        outputs = self._running.generate(given, params, unique_id)
        try:
            async for output in outputs:
                yield output
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error
        except EngineGenerateError as error:
            raise EngineError(f"the engine failed this request: {error.__cause__}") from error
        except (VLLMClientError, ValueError) as error:
            raise RequestError(str(error)) from error
        finally:
            await outputs.aclose()

    @property
    def serving(self) -> State:
        """vLLM's OpenAI serving objects: `openai_serving_chat`, `…_completion`, `…_models`, `serving_tokenization`."""
        if self._serving is None:
            raise EngineError("the engine is not up")
        return self._serving

    @property
    def max_model_len(self) -> int:
        """Tokens that the context holds, prompt and answer together."""
        return self._running.model_config.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._running.model_config.get_vocab_size()

    @property
    def kv_blocks(self) -> int:
        """Blocks that the KV cache has."""
        return self._running.vllm_config.cache_config.num_gpu_blocks or 0

    @property
    def block_size(self) -> int:
        """Tokens that a KV block holds."""
        return self._running.vllm_config.cache_config.block_size

    @property
    def max_num_seqs(self) -> int:
        """Requests that run at once."""
        return self._running.vllm_config.scheduler_config.max_num_seqs

    @property
    def tokenizer(self) -> TokenizerLike:
        """The model's tokenizer."""
        return self._running.get_tokenizer()

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end an answer, the tokenizer's own first."""
        given = self._running.model_config.try_get_generation_config().get("eos_token_id")
        others = given if isinstance(given, list) else [given]
        return list(dict.fromkeys(t for t in (self.tokenizer.eos_token_id, *others) if t is not None))

    @property
    def chat_template(self) -> str:
        """The chat template in Jinja, empty if there is none."""
        given = self.serving.openai_serving_chat.chat_template or getattr(self.tokenizer, "chat_template", None)
        return given if isinstance(given, str) else ""

    def stats(self) -> dict[str, Any]:
        """vLLM's own figures as of its last step."""
        stats: dict[str, Any] = {"model": self.model, "max_draft_tokens": self.max_draft_tokens}
        for metric in get_metrics_snapshot():
            if isinstance(metric, Gauge | Counter) and metric.name in VLLM_METRICS:
                stats[VLLM_METRICS[metric.name]] = metric.value
        return stats

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the engine is not up")
        return self._llm


def _find(model: str) -> None:
    """Raises StartError unless `model` is a directory with a model or a hub id whose config can be had."""
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise StartError(f"{model}: the directory holds no config.json")
        return
    if model.startswith(("/", ".", "~")):
        raise StartError(f"{model}: no such directory")
    try:
        hf_hub_download(model, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StartError(f"{model}: neither a directory nor a model that the hub can give") from error


def _start(args: Any, directory: Path) -> AsyncLLM:
    vllm_version.check()
    _find(args.model)
    preloaded = os.environ.get("LD_PRELOAD")
    try:
        engine_args = AsyncEngineArgs.from_cli_args(args)
        if engine_args.enable_prefix_caching is not False and engine_args.kv_events_config is None:
            engine_args.kv_events_config = KVEventsConfig(**kv_events_args(directory)["kv_events_config"])
        return AsyncLLM.from_engine_args(engine_args)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartError(f"{args.model}: vLLM did not start: {reason}") from error
    finally:
        # vLLM sets this for its own processes; others that this one starts shall not have torch's libraries.
        os.environ.pop("LD_PRELOAD", None)
        if preloaded is not None:
            os.environ["LD_PRELOAD"] = preloaded


def _processes(llm: AsyncLLM) -> list[Any]:
    """The engine's processes on this machine; Ray's are not ours to end."""
    return list(getattr(llm.engine_core.resources.engine_manager, "processes", ()))


def _in_thread(function: Any, *args: object) -> Future[AsyncLLM]:
    """Run in a thread of its own, which ends with it."""
    executor = ThreadPoolExecutor(1, "vllm-start")
    try:
        return executor.submit(function, *args)
    finally:
        executor.shutdown(wait=False)
