"""Owns vLLM's AsyncLLM: starts and stops it, and has it verify drafts. Knows nothing of HTTP or sessions."""

# ruff: noqa: E402 - vLLM reads its environment when it is imported.
import asyncio
import difflib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

for _name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from starlette.datastructures import State
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.reader import Counter, Gauge, get_metrics_snapshot

from cloud.vllm_plugin import DRAFT_KEY
from common.errors import ConfigError, ContextLengthError, EngineError, RequestError, StartError
from common.types import Sampling, Verdict

CPU_DEFAULTS: Mapping[str, object] = {
    "block_size": 32,  # prefix hits are per block, and CPU attention wants multiples of 32
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 2**30,
    "enforce_eager": True,  # compiling doubles the start (30 s more on 2 cores) for steps a quarter faster
}
OURS = ("model", "scheduler_cls", "speculative_config", "async_scheduling")
"""Engine args that this project sets and nobody else can."""


class CloudEngine:
    """vLLM with the verify scheduler; `start` and `close` are paired, everything else works between them."""

    def __init__(self, model: str, max_draft_tokens: int = 16, engine_args: Mapping[str, object] = {}) -> None:
        """`engine_args` are vLLM's own, by their names in Python; raises ConfigError for one vLLM does not know."""
        self.model = model
        self.max_draft_tokens = max_draft_tokens
        self._args = _parse(model, max_draft_tokens, engine_args)
        self._llm: AsyncLLM | None = None
        self._serving = State()
        self._counts = {"verifies": 0, "drafted": 0, "accepted": 0}

    async def start(self) -> None:
        """Returns when the model answers (half a minute); raises StartError."""
        # Not the loop's default executor, which would wait for a start that was given up.
        starting: Future[AsyncLLM] = _in_thread(_start, self._args)
        try:
            llm = await asyncio.wrap_future(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(lambda started: started.exception() or started.result().shutdown())
            raise
        await init_app_state(llm, self._serving, self._args, await llm.get_supported_tasks())
        self._llm = llm

    async def close(self) -> None:
        """Ends the engine process; requests still running fail with EngineError. Does nothing when not started."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            if llm.output_handler is not None:
                llm.output_handler.cancel()  # it would log the end of the engine process as a crash
            llm.output_processor.propagate_error(EngineDeadError())
            await asyncio.to_thread(llm.shutdown)
            llm.engine_core.resources.ctx.destroy(linger=0)  # vLLM leaves it open

    async def verify(
        self,
        token_ids: list[int],
        draft: list[int],
        sampling: Sampling,
        max_tokens: int = 1,
        use_kv_cache: bool = True,
        request_id: str | None = None,
    ) -> Verdict:
        """Verify `draft` after `token_ids` in one engine step, or draw `max_tokens` tokens if there is no draft.

        Where a busy step has no room for the whole draft, vLLM sees only its beginning; the verdict is right for it.
        Cancelling this aborts the request in vLLM. Raises ContextLengthError, RequestError or EngineError.
        """
        began = time.perf_counter()
        if len(token_ids) >= self.max_model_len or len(token_ids) + len(draft) > self.max_model_len:
            raise ContextLengthError(
                f"{len(token_ids)} tokens and a draft of {len(draft)} do not fit the context of {self.max_model_len}"
            )
        options = {
            "max_tokens": len(draft) + 1 if draft else max_tokens,
            "seed": None if sampling.seed is None else seed_at(sampling.seed, len(token_ids)),
            "extra_args": {DRAFT_KEY: list(draft)} if draft else None,
            "skip_reading_prefix_cache": not use_kv_cache,
        }
        # One HTTP request may become several of vLLM's, also at the same time.
        unique_id = f"{request_id or 'verify'}-{uuid.uuid4().hex}"
        output = (await self._generate(token_ids, sampling, options, unique_id)).outputs[0]
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"the engine ended the request: {output.finish_reason}")
        drawn = list(output.token_ids)
        accepted = next(
            (at for at, pair in enumerate(zip(drawn, draft, strict=False)) if pair[0] != pair[1]),
            min(len(drawn), len(draft)),
        )
        self._count(len(draft), accepted)
        full = len(token_ids) + len(drawn) >= self.max_model_len
        latency_ms = (time.perf_counter() - began) * 1000
        return Verdict(drawn, accepted, output.finish_reason == "stop" or full, latency_ms)

    @property
    def serving(self) -> State:
        """vLLM's OpenAI serving objects: `openai_serving_chat`, `…_completion`, `…_models`, `serving_tokenization`."""
        assert self._running
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
    def tokenizer(self) -> TokenizerLike:
        """The model's tokenizer."""
        return self._running.get_tokenizer()

    async def check_health(self) -> None:
        """Raises EngineError when the engine is not up, or has died."""
        try:
            await self._running.check_health()
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error

    def stats(self) -> dict[str, Any]:
        """Counts since the start, and vLLM's own figures as of its last step."""
        stats: dict[str, Any] = {"model": self.model, "max_draft_tokens": self.max_draft_tokens, **self._counts}
        for metric in get_metrics_snapshot():
            if isinstance(metric, Gauge | Counter) and metric.name in VLLM_METRICS:
                stats[VLLM_METRICS[metric.name]] = metric.value
        return stats

    @property
    def _running(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the engine is not up")
        return self._llm

    async def _generate(
        self, token_ids: list[int], sampling: Sampling, options: dict[str, Any], request_id: str
    ) -> RequestOutput:
        try:
            params = SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **options,
            )
            # vLLM extends the list it is given. Cancelling the task aborts the request inside this generator.
            outputs = self._running.generate(tokens_input(list(token_ids)), params, request_id)
            return await anext(outputs)
        except EngineDeadError as error:
            raise EngineError("the engine has died") from error
        except EngineGenerateError as error:
            raise EngineError(f"the engine failed this request: {error.__cause__}") from error
        except (VLLMClientError, ValueError) as error:
            raise RequestError(str(error)) from error

    def _count(self, drafted: int, accepted: int) -> None:
        self._counts["verifies"] += 1
        self._counts["drafted"] += drafted
        self._counts["accepted"] += accepted


VLLM_METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
}


def seed_at(seed: int, position: int) -> int:
    """The seed of one round: vLLM starts its generator anew for each request, so each position needs its own."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"cloud.engine_args: {message}")


def _parse(model: str, max_draft_tokens: int, given: Mapping[str, object]) -> Any:
    parser = make_arg_parser(_Parser())
    known = {action.dest for action in parser._actions} - {"help", *OURS}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            reason = "is set by this project" if key in OURS else "is not an engine argument of vLLM"
            raise ConfigError(f"cloud.engine_args.{key}: {reason}{'' if key in OURS else hint}")
    defaults = {"use_tqdm_on_load": False, **(CPU_DEFAULTS if current_platform.is_cpu() else {})}
    ours = {
        "model": model,
        "scheduler_cls": "cloud.vllm_plugin.RemoteDraftScheduler",
        "speculative_config": {
            "method": "custom_class",
            "model": "cloud.vllm_plugin.NoProposer",
            "num_speculative_tokens": max_draft_tokens,
        },
        "async_scheduling": False,
        "served_model_name": [Path(model).name, model] if Path(model).is_dir() else [model],
    }
    arguments = {**defaults, **ours, **given}
    if current_platform.is_cpu() and arguments.get("dtype", "auto") == "auto":
        arguments["dtype"] = "float32"  # most CPUs emulate bfloat16: a verify takes 3 to 4 times as long
    return parser.parse_args([word for key, value in arguments.items() for word in _words(key, value)])


def _words(key: str, value: object) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    match value:
        case None:
            return []
        case bool():
            return [flag] if value else [f"--no-{flag[2:]}"]
        case list() | tuple():
            return [flag, *map(str, value)]
        case dict():
            return [flag, json.dumps(value)]
        case _:
            return [f"{flag}={value}"]


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


def _start(args: Any) -> AsyncLLM:
    _find(args.model)
    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(args))
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StartError(f"{args.model}: vLLM did not start: {reason}") from error


def _in_thread(function: Any, *args: object) -> Future[AsyncLLM]:
    """Run in a thread of its own, which ends with it."""
    executor = ThreadPoolExecutor(1, "vllm-start")
    try:
        return executor.submit(function, *args)
    finally:
        executor.shutdown(wait=False)
