"""The whole model's engine: vLLM with the verify scheduler, its OpenAI serving objects and its KV events."""

import asyncio
import functools
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.datastructures import State
from vllm.config import KVEventsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.reader import Counter, Gauge, get_metrics_snapshot

from cloud.engine import args as engine_args
from cloud.engine import grammars
from cloud.engine.base import VLLMEngine
from cloud.engine.kv_events import KVEvents, kv_events_args
from cloud.engine.text_readers import TextReaders
from cloud.kv_cache import VLLMKVCache
from common.errors import EngineError, RequestError
from common.grammar.compiler import GrammarCompiler
from common.grammar.spec import ANY_OBJECT, GrammarSpec
from common.tracing.context import ShortLines

VLLM_METRICS = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:prefix_cache_queries": "prefix_cache_queries",
    "vllm:prefix_cache_hits": "prefix_cache_hits",
}


class CloudEngine(VLLMEngine):
    """vLLM with the verify scheduler; works from `start` to `close`, and can then be started again."""

    def __init__(self, model: str, max_draft_tokens: int = 16, args: Mapping[str, object] = {}) -> None:
        """`args` are vLLM's own engine arguments, by their names in Python; raises ConfigError for an unknown one."""
        super().__init__(engine_args.parse(model, max_draft_tokens, args))
        self.model = model
        self.max_draft_tokens = max_draft_tokens
        self.kv_cache = VLLMKVCache()
        """The contents of the replicas' prefix caches, as of their last events."""
        self._followers: list[KVEvents] = []
        self._directory: TemporaryDirectory[str] | None = None
        self._serving: State | None = None
        self._readers: TextReaders | None = None
        """Shut down with vLLM's renderer."""
        self._grammars: GrammarCompiler | None = None

    async def check_grammar(self, spec: GrammarSpec) -> None:
        """Raises GrammarError for a grammar that cannot be enforced, OverloadedError if many wait to be compiled."""
        if self._grammars is None:
            raise EngineError("the engine is not up")
        await grammars.check(self._grammars, spec)

    async def _opened(self, llm: AsyncLLM) -> None:
        serving = State()
        await init_app_state(llm, serving, self._args, await llm.get_supported_tasks())
        readers = llm.renderer._executor  # vLLM has no public place for another executor than its own thread
        readers.shutdown(wait=False)
        readers._inner = self._readers = TextReaders()
        for rank, source in (llm.get_kv_event_sources() or {}).items():
            follower = KVEvents(self.kv_cache, str(rank), source.endpoint, source.replay_endpoint)
            follower.start()
            self._followers.append(follower)
        self._serving = serving
        grammars.install()
        shorten_lines()
        tokenizer, size = self.tokenizer, self.vocab_size
        self._grammars = GrammarCompiler(lambda: grammars.tokenizer_for(tokenizer, size))
        await self._grammars.prepare()
        await self._prepare_grammars()

    async def _prepare_grammars(self) -> None:
        """Asks for a structured answer: for the first one the engine's process reads the vocabulary, in a second."""
        params = SamplingParams(max_tokens=1, structured_outputs=grammars.params_of(ANY_OBJECT), detokenize=False)
        with suppress(RequestError, EngineError):  # of tokenizers that llguidance cannot read
            async for _ in self.generate([0], params):
                pass

    def _engine_args(self) -> AsyncEngineArgs:
        args = super()._engine_args()
        if args.enable_prefix_caching is not False and args.kv_events_config is None:
            self._directory = TemporaryDirectory(prefix="cloud-")  # mode 0700: events contain the tokens of all tenants
            args.kv_events_config = KVEventsConfig(**kv_events_args(Path(self._directory.name))["kv_events_config"])
        return args

    async def close(self) -> None:
        self._serving = None
        if self._grammars is not None:
            compiler, self._grammars = self._grammars, None
            await compiler.close()
        while self._followers:
            await self._followers.pop().close()
        await super().close()
        if self._directory is not None:
            self._directory.cleanup()

    @property
    def serving(self) -> State:
        """vLLM's OpenAI serving objects: `openai_serving_chat`, `…_completion`, `…_models`, `serving_tokenization`."""
        if self._serving is None:
            raise EngineError("the engine is not up")
        return self._serving

    @property
    def model_name(self) -> str:
        """The model's name in vLLM's API."""
        return str(self._args.served_model_name[0])

    @property
    def tokenizer(self) -> TokenizerLike:
        """The model's tokenizer."""
        return self._running.get_tokenizer()

    async def encode(self, text: str, special: bool) -> list[int]:
        """The token ids of `text`, off the event loop; `special`: with those that begin a prompt."""
        encode = functools.partial(self.tokenizer.encode, text, add_special_tokens=special)
        return list(await asyncio.get_running_loop().run_in_executor(self._readers, encode))

    @property
    def end_tokens(self) -> list[int]:
        """The token ids that end an answer, the tokenizer's own first."""
        configured = self._running.model_config.try_get_generation_config().get("eos_token_id")
        others = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys(t for t in (self.tokenizer.eos_token_id, *others) if t is not None))

    @property
    def chat_template(self) -> str:
        """The chat template in Jinja; empty if there is none."""
        template = self.serving.openai_serving_chat.chat_template or getattr(self.tokenizer, "chat_template", None)
        return template if isinstance(template, str) else ""

    def stats(self) -> dict[str, Any]:
        """vLLM's own metrics as of its last step."""
        stats: dict[str, Any] = {"model": self.model, "max_draft_tokens": self.max_draft_tokens}
        stats["hardware"] = dict(self.settings)
        for metric in get_metrics_snapshot():
            if isinstance(metric, Gauge | Counter) and metric.name in VLLM_METRICS:
                stats[VLLM_METRICS[metric.name]] = metric.value
        return stats


def shorten_lines() -> None:
    """vLLM's lines quote clients' values whole, such as a part's type or the name of a model."""
    for handler in logging.getLogger("vllm").handlers:
        if not any(isinstance(one, ShortLines) for one in handler.filters):  # a restarted engine has it already
            handler.addFilter(ShortLines())
