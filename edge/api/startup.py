"""Starts what an edge server needs and stops it again: engines, clouds, chat template, vocabulary, metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from prometheus_client import CollectorRegistry

from common.cloud_client.pool import CloudPool
from common.cloud_client.privacy import PrivatePatterns
from common.config_edge import EdgeCacheConfig, EdgeConfig
from common.config_schema import Config
from common.decoding.online_gate import OnlineGate
from common.decoding.policy import default_plan
from common.hardware import log_settings
from edge.api.cloud_vocabulary import CloudVocabulary
from edge.api.context import ServerContext
from edge.draft_generator import DraftGenerator
from edge.engine.engine import EdgeEngine
from edge.engine.scheduler import Confidence
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache
from edge.metrics import AnswerMetrics, CloudsCollector, SegmentsCollector
from edge.split.engine import EdgeInferenceEngine
from edge.text.chat_template import ChatTemplate


@asynccontextmanager
async def started(config: Config, registry: CollectorRegistry, confidence: Confidence) -> AsyncIterator[ServerContext]:
    """The context of a running server, whose metrics are on `registry`; leaving stops everything.

    Raises StartError or ConfigError for models that cannot be used or clouds that do not fit.
    """
    engine, clouds = _engine(config.edge, confidence), CloudPool(config.communication)
    split = EdgeInferenceEngine(config, clouds) if config.edge.split.manifest else None
    patterns = config.inference.private_patterns
    private = PrivatePatterns(patterns) if patterns else None
    async with (
        engine,
        clouds,
        ChatTemplate(engine.chat_template or "", bos=engine.bos, eos=engine.eos) as template,
        CloudVocabulary(engine, clouds.get, template) as vocabulary,
        split or nullcontext(),
        private or nullcontext(),
    ):
        log_settings(engine.model_name, engine.settings())
        await clouds.check_protocols()
        registry.register(CloudsCollector(clouds))
        if split:
            registry.register(SegmentsCollector(split.segments))
        plan, online = default_plan(config), config.inference.online
        yield ServerContext(
            config=config,
            plan=plan,
            engine=engine,
            template=template,
            clouds=clouds,
            vocabulary=vocabulary,
            drafts=DraftGenerator(engine, config.inference.features.use_kv_cache and config.edge.kv_cache.enabled),
            metrics=AnswerMetrics(registry),
            private=private,
            online=OnlineGate(online, plan.gate) if online.enabled else None,
            split=split,
        )


def _engine(config: EdgeConfig, confidence: Confidence) -> EdgeEngine:
    return EdgeEngine(config.model, confidence=confidence, store=_store(config.kv_cache), limits=config.limits)


def _store(config: EdgeCacheConfig) -> LlamaCppKVCache | AblatedKVCache:
    if not config.enabled:
        return AblatedKVCache()
    return LlamaCppKVCache(
        max_size=config.max_size,
        ram_bytes=config.ram_bytes,
        disk_bytes=config.disk_bytes,
        directory=config.directory,
        enable_compression=config.enable_compression,
    )
