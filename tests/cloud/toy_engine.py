"""A cloud engine without vLLM: verifies and generates with the toy model, ends answers as vLLM does."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from vllm.sampling_params import SamplingParams

from benchmarks.fake_cloud import TOKENIZER
from benchmarks.toy_model import END, Model, answer_of, cloud_model
from cloud.cloud_server import build_app
from cloud.engine.engine import CloudEngine
from cloud.kv_cache import VLLMKVCache
from cloud.vllm_plugin.keys import DRAFT_KEY
from common.config_cloud import CloudConfig, DraftVerifierConfig
from common.http_server import HTTPServer
from common.protocol.prefix_hash import common_prefix


class ToyEngine:
    """Greedy; an answer that reaches `max_model_len` ends there with vLLM's reason, `length`."""

    vocab_size = 128
    max_draft_tokens = 16
    kv_blocks = 1000
    block_size = 16
    chat_template = ""
    model_name = "toy"
    end_tokens = (END,)
    tokenizer = SimpleNamespace(
        decode=lambda ids: "".join(chr(ord("a") + token % 26) for token in ids),
        backend_tokenizer=SimpleNamespace(to_str=TOKENIZER.read_text),
    )

    serving: Any = None

    def __init__(self, model: Model = cloud_model, max_model_len: int = 100) -> None:
        self.model = model
        self.max_model_len = max_model_len
        self.kv_cache = VLLMKVCache()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def check_health(self) -> None: ...

    async def ping(self) -> None: ...

    def computing(self) -> bool:
        return False

    def steps(self) -> int:
        return 0

    def stats(self) -> dict[str, Any]:
        return {}

    async def generate(
        self, prompt: list[int], params: SamplingParams, *others: object
    ) -> AsyncGenerator[SimpleNamespace, None]:
        draft = (params.extra_args or {}).get(DRAFT_KEY, [])
        room = self.max_model_len - len(prompt)
        assert 0 < room >= len(draft), "vLLM takes no draft that is longer than its context"
        truth = answer_of(self.model, prompt, min(params.max_tokens or room, room))
        drawn = truth[: common_prefix(truth, draft) + 1] if draft else truth
        ended, full = drawn[-1] == END, len(prompt) + len(drawn) == self.max_model_len
        # A round with a draft ends after its step, and vLLM calls that `length`, as it does a full context.
        reason = "stop" if ended else "length" if full or draft or len(drawn) == params.max_tokens else None
        answer = SimpleNamespace(token_ids=drawn, logprobs=None, finish_reason=reason)
        progress = {"drafts": (len(drawn), 0, 0, 0)}
        yield SimpleNamespace(outputs=[answer], finished=True, kv_transfer_params=progress, num_cached_tokens=0)


STATELESS = CloudConfig(draft_verifier=DraftVerifierConfig(resident_sessions=0))
"""Every round is stateless."""


@asynccontextmanager
async def toy_cloud(engine: ToyEngine, config: CloudConfig = STATELESS) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a real cloud server on a toy engine."""
    server = HTTPServer(build_app(cast(CloudEngine, engine), config), "127.0.0.1", 0)
    await server.start()
    try:
        shown = {"Authorization": f"Bearer {config.keys[0].reveal()}"} if config.keys else {}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}", headers=shown) as http:
            assert (await http.post("/verify", json={"new_token_ids": [5]})).status == 200
            yield http
    finally:
        await server.stop()
