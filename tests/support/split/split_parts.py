"""Helpers for tests of the layer split: the whole demo model as reference, its parts, and a server with its tail."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from cloud.engine.supervisor import SupervisorTiming
from cloud.routes.admission import Admission
from cloud.split.service import SplitService
from common.cloud_client.split_session import CloudToken, SplitSession
from common.config_cloud import CloudSplitConfig
from common.config_values import ServerConfig
from common.http_server import HTTPServer, make_app
from common.types import GREEDY, Sampling
from models.partition.partition import partition
from tests.conftest import CLOUD_MODEL

EXIT = 2
"""Number of layers before the first exit, where the demo model is split."""
TAIL_ARGS = {"max_model_len": 256, "max_num_batched_tokens": 512, "max_num_seqs": 16, "kv_cache_memory_bytes": 2**26}
PATIENCE = 60.0
"""Time limit for a token, in seconds, on a machine that is busy with other tests."""


class WholeModel:
    """The demo model with all layers in float32, in this process: the reference for a split one."""

    def __init__(self, path: Path = CLOUD_MODEL) -> None:
        self._path = path
        self._outputs: dict[tuple[int, ...], Any] = {}

    @cached_property
    def _model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self._path)

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def states(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """[n, hidden], after the layers before the first exit."""
        return self._run(token_ids).hidden_states[EXIT][0].numpy()

    def likeliest(self, token_ids: Sequence[int]) -> tuple[int, float]:
        """The next token and its natural log probability."""
        logprobs = torch.log_softmax(self._run(token_ids).logits[0, -1], -1)
        token = int(logprobs.argmax())
        return token, float(logprobs[token])

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """[vocabulary], of the token after them."""
        return self._run(token_ids).logits[0, -1].numpy()

    def logprob(self, token_ids: Sequence[int], token: int) -> float:
        """The natural log probability of `token` after `token_ids`."""
        return float(torch.log_softmax(self._run(token_ids).logits[0, -1], -1)[token])

    def _run(self, token_ids: Sequence[int]) -> Any:
        if tuple(token_ids) not in self._outputs:
            with torch.no_grad():
                self._outputs[tuple(token_ids)] = self._model(torch.tensor([token_ids]), output_hidden_states=True)
        return self._outputs[tuple(token_ids)]


async def answer(
    whole: WholeModel,
    session: SplitSession,
    token_ids: Sequence[int],
    tokens: int,
    sampling: Sampling = GREEDY,
    sent: int = 0,
) -> list[CloudToken]:
    """The cloud's next `tokens` tokens after `token_ids`, of whose states the session has already sent `sent`."""
    ids, drawn = list(token_ids), list[CloudToken]()
    for _ in range(tokens):
        session.send(whole.states(ids)[sent:])
        sent = len(ids)
        drawn.append(await session.token(sampling, PATIENCE))
        ids.append(drawn[-1].token_id)
    return drawn


def cut_demo(folder: Path) -> Path:
    """Partitions the demo model into a new folder in `folder`."""
    partition(str(CLOUD_MODEL), [EXIT, 4], None, "f32", folder / "split")
    return folder / "split"


@asynccontextmanager
async def served(
    manifest: Path,
    keys: ServerConfig | None = None,
    timing: SupervisorTiming | None = None,
    **config: Any,
) -> AsyncIterator[tuple[HTTPServer, SplitService]]:
    """A server with only a tail, once the tail answers."""
    split = CloudSplitConfig(manifest=str(manifest), engine_args=TAIL_ARGS | config.pop("engine_args", {}), **config)
    app = make_app(keys)
    service = SplitService(split, timing or SupervisorTiming(), Admission(256, 2**18).admit)
    service.add_to(app)
    server = HTTPServer(app, "127.0.0.1", 0)
    await server.start()
    try:
        await service.supervisor.wait_up()
        yield server, service
    finally:
        await server.stop()
