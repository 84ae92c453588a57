"""Cloud engines for tests: a real one for as long as a test needs it, and the plugin without one of its guards."""

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import torch
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.sample import rejection_sampler

from cloud.engine.engine import CloudEngine
from cloud.vllm_plugin.mailbox import Mailboxes
from cloud.vllm_plugin.scheduler import NoProposer, RemoteDraftScheduler

VLLM_EXPAND = inspect.unwrap(rejection_sampler.expand_batch_to_tokens)
"""vLLM's own function, which the plugin's guard replaces."""


@asynccontextmanager
async def started(engine: CloudEngine) -> AsyncIterator[CloudEngine]:
    """Starts `engine` and closes it at the end; the metrics of an engine from before are then registered again.

    vLLM registers the metrics of a process's newest engine only.
    """
    earlier = vllm_collectors()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        unregister_vllm_metrics()
        for collector in earlier:
            REGISTRY.register(collector)


def vllm_collectors() -> list[Collector]:
    named = list(REGISTRY._collector_to_names)
    return [collector for collector in named if getattr(collector, "_name", "").startswith("vllm:")]


class UnguardedProposer(NoProposer):
    """Takes the guard of the expansion out; vLLM makes the proposer in the process that samples, after the patches."""

    def __init__(self, vllm_config: object) -> None:
        super().__init__(vllm_config)
        rejection_sampler.expand_batch_to_tokens = unguarded_expand


def unguarded_expand(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """vLLM's own, with ones as uninitialised memory, which may hold the right values of an earlier step by chance."""
    with mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_ones):
        return VLLM_EXPAND(x, *args, **kwargs)


class CredulousScheduler(RemoteDraftScheduler):
    """Its mailboxes accept drafts that the answer has contradicted; vLLM makes it in the process that has them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Mailboxes.agrees = staticmethod(lambda mail, token_ids: True)  # type: ignore[method-assign]
