"""Owns one AsyncLLM of vLLM: starts it, generates with it, closes it."""

import asyncio
import gc
import os
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from cloud.engine import hardware, version
from cloud.engine.long_steps import LongSteps
from cloud.engine.process_tree import EngineGuard, ProcessTree, inherited, memory_of_children
from cloud.vllm_plugin.step_file import STEPS_FOLDER
from common.errors import EngineError, RequestError, StartError
from common.files.hub import check_model
from common.hardware import Setting, log_settings, usable_cores
from common.tracing.context import current_traceparent
from common.tracing.export import vllm_endpoint, vllm_environment

_one_start_at_a_time = threading.Lock()


class VLLMEngine:
    """vLLM and its processes; works from `start` to `close`, and can then be started again.

    `args` are what `cloud.engine.args` returns.
    """

    def __init__(self, args: Any) -> None:
        self._args = args
        self.settings: Mapping[str, Setting] = {}
        """The settings that fit the machine, by name, and why; set by the start."""
        self._llm: AsyncLLM | None = None
        self._processes: ProcessTree | None = None
        self._steps_folder: TemporaryDirectory[str] | None = None
        self._guard: EngineGuard | None = None
        self._started_at = 0.0
        self._long_steps: LongSteps | None = None

    async def start(self) -> None:
        """Returns when the model answers (after about 30 s); raises StartError, and then leaves nothing running."""
        self._started_at = time.monotonic()
        try:
            llm = await self._started()
            await self._warm_up()
            await self._opened(llm)
            self._watch(llm)
            _settle_heap()
        except BaseException:
            await self.close()
            raise

    def start_progress(self) -> str:
        """What a start that runs is doing, since when, and how much memory the engine has filled."""
        stage = "it loads the model" if self._llm is None else "it warms up"
        seconds, gigabytes = time.monotonic() - self._started_at, memory_of_children() / 1e9
        return f"{stage}, {seconds:.0f} s so far, {gigabytes:.1f} GB in memory"

    async def _warm_up(self) -> None:
        """Asks for a log-probability: for the first one vLLM compiles code, and does not answer for seconds."""
        async for _ in self.generate([0], SamplingParams(max_tokens=1, logprobs=0, detokenize=False)):
            pass

    async def _opened(self, llm: AsyncLLM) -> None:
        """Called at the end of a start, for subclasses."""

    def _watch(self, llm: AsyncLLM) -> None:
        assert self._steps_folder is not None
        self._processes = ProcessTree(process.pid for process in _processes(llm))
        self._long_steps = LongSteps(Path(self._steps_folder.name), self._processes)

    def _engine_args(self) -> AsyncEngineArgs:
        args = AsyncEngineArgs.from_cli_args(self._args)
        if not args.disable_log_stats:  # vLLM's spans are made of its statistics
            args.otlp_traces_endpoint = args.otlp_traces_endpoint or vllm_endpoint()
        self.settings = hardware.fit(args)
        log_settings(self._args.model, self.settings)
        return args

    async def close(self) -> None:
        """Ends the engine process; requests still running fail with EngineError. Does nothing when not started."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would log the end of the engine process as a crash
            llm.output_processor.propagate_error(EngineDeadError())
            await asyncio.to_thread(llm.shutdown)
            llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it open
        if self._guard is not None:
            self._guard.close()
        if self._steps_folder is not None:
            self._steps_folder.cleanup()

    async def _started(self) -> AsyncLLM:
        # Not the loop's default executor, which would wait for a start that was cancelled.
        self._steps_folder = TemporaryDirectory(prefix="cloud-steps-")
        self._guard = EngineGuard(f"{STEPS_FOLDER}={self._steps_folder.name}")
        threads, folder = hardware.threads(usable_cores(), os.environ), self._steps_folder.name
        environment = {**version.ENVIRONMENT, **vllm_environment(), **threads, STEPS_FOLDER: folder}
        starting: Future[AsyncLLM] = _in_thread(_start, self._args.model, self._engine_args, environment)
        try:
            self._llm = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda started: started.exception() or started.result().shutdown())
            raise
        return self._llm

    def kill(self) -> None:
        """Kills the engine's processes; `close` then frees what they had in this process."""
        if self._processes is not None:
            self._processes.kill()

    async def ping(self) -> None:
        """Returns when the engine's loop, which answers between two steps, has answered."""
        await self._running.engine_core.is_sleeping_async()

    def computing(self) -> bool:
        """Whether the engine has computed a step since the last call."""
        return self._long_steps is not None and self._long_steps.computing()

    def steps(self) -> int:
        """Steps that the engine has computed."""
        return self._long_steps.count() if self._long_steps else 0

    async def check_health(self) -> None:
        """Raises EngineError if the engine is not up, or has died."""
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
        """vLLM's outputs as they come; closing this, or cancelling its reader, aborts the request in vLLM.

        A prompt that comes in parts makes a live request. Raises RequestError or EngineError.
        """
        # vLLM extends the list it is given; and one HTTP request may become several requests to vLLM at the same time.
        engine_prompt = tokens_input(list(prompt), cache_salt=cache_salt) if isinstance(prompt, list) else prompt
        unique_id = f"{request_id or 'verify'}-{uuid.uuid4().hex}"
        outputs = self._running.generate(engine_prompt, params, unique_id, trace_headers=self._trace_headers())
        try:
            async for output in outputs:
                yield output
            if not isinstance(prompt, list):
                raise EngineError("the engine ended the live request")  # its parts never end
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error
        except EngineGenerateError as error:
            raise EngineError(f"the engine failed this request: {error.__cause__}") from error
        except (VLLMClientError, ValueError) as error:
            raise RequestError(str(error)) from error
        except VLLMError as error:
            raise EngineError(f"the engine failed this request: {error}") from error
        finally:
            await outputs.aclose()

    def _trace_headers(self) -> dict[str, str] | None:
        """The parent of vLLM's own span for a request; vLLM makes none of a live request."""
        traced = self._running.observability_config.otlp_traces_endpoint is not None
        return {"traceparent": parent} if traced and (parent := current_traceparent.get()) else None

    @property
    def max_model_len(self) -> int:
        """Tokens in the context, prompt and answer together."""
        return self._running.model_config.max_model_len

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._running.model_config.get_vocab_size()

    @property
    def kv_blocks(self) -> int:
        """Blocks in the KV cache."""
        return self._running.vllm_config.cache_config.num_gpu_blocks or 0

    @property
    def block_size(self) -> int:
        """Tokens in a KV block."""
        return self._running.vllm_config.cache_config.block_size

    @property
    def max_num_seqs(self) -> int:
        """Requests that may run at once."""
        return self._running.vllm_config.scheduler_config.max_num_seqs

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the engine is not up")
        return self._llm


def _settle_heap() -> None:
    """Takes what exists now out of the garbage collector's full runs, each of which would stop all requests for half a
    second: vLLM and PyTorch have a million objects that stay."""
    gc.unfreeze()  # what a lost engine has left
    gc.collect()
    gc.freeze()


def _start(model: str, args: Callable[[], AsyncEngineArgs], environment: Mapping[str, str]) -> AsyncLLM:
    check_model(model)
    try:
        with _one_start_at_a_time, inherited(environment):
            return AsyncLLM.from_engine_args(args())
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartError(f"{model}: vLLM did not start: {reason}") from error


def _processes(llm: AsyncLLM) -> list[Any]:
    """The engine's processes on this machine; those that Ray owns are not among them."""
    return list(getattr(llm.engine_core.resources.engine_manager, "processes", ()))


def _in_thread(function: Any, *args: object) -> Future[AsyncLLM]:
    """Runs `function` in a thread of its own, which ends with it."""
    executor = ThreadPoolExecutor(1, "vllm-start")
    try:
        return executor.submit(function, *args)
    finally:
        executor.shutdown(wait=False)
