"""A cloud engine for as long as a test needs it. Knows that vLLM shows the metrics of a process' newest engine only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from vllm.v1.metrics.prometheus import unregister_vllm_metrics

from cloud.engine.engine import CloudEngine


@asynccontextmanager
async def started(engine: CloudEngine) -> AsyncIterator[CloudEngine]:
    """Start and close `engine`; the metrics of an engine that ran before it are on the registry again afterwards."""
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
