"""Starts what an edge server needs and stops it again: engines, clouds, chat template, vocabulary, metrics."""

import hashlib
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from common.cloud_client.pool import CloudPool
from common.cloud_client.privacy import PrivatePatterns
from common.config_edge import EdgeCacheConfig, EdgeConfig, RouterConfig
from common.config_schema import Config
from common.decoding import saved_estimates
from common.decoding.estimates import Estimates
from common.decoding.online_gate import OnlineGate
from common.decoding.policy import Plan, default_plan
from common.enums import CloudKind
from common.errors import ConfigError
from common.files.installation import shipped
from common.hardware import log_settings
from common.routing import router
from common.routing.router import Router
from common.types import Mode, VerificationMode
from edge.api.clouds.cloud_vocabulary import CloudVocabulary
from edge.api.clouds.text_clouds import TextClouds
from edge.api.context import ServerContext
from edge.api.without_model import EdgeWithoutModel
from edge.costs import CostAccount
from edge.draft_generator import DraftGenerator
from edge.engine.edge_model import EdgeModel
from edge.engine.embedding_engine import EmbeddingEngine
from edge.engine.engine import EdgeEngine
from edge.engine.scheduler import Confidence
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache
from edge.metrics import AnswerMetrics, CloudsCollector, SegmentsCollector
from edge.savings import Savings
from edge.split.engine import EdgeInferenceEngine
from edge.tenants.daily_use import DailyUse
from edge.tenants.limits import limits_of, weights_of
from edge.tenants.quotas import Quotas
from edge.tenants.use_file import kept
from edge.text.chat_template import ChatTemplate

log = logging.getLogger(__name__)


@asynccontextmanager
async def started(config: Config, registry: CollectorRegistry, confidence: Confidence) -> AsyncIterator[ServerContext]:
    """The context of a running server, whose metrics are on `registry`; leaving stops everything.

    Raises StartError or ConfigError for models that cannot be used or clouds that do not fit.
    """
    _check_parts(config)
    clouds, use = CloudPool(config.communication), DailyUse()
    limits = limits_of(config.edge.quotas)
    engine = (
        _engine(config.edge, confidence) if config.edge.model.path else EdgeWithoutModel(clouds.get, config.edge.limits)
    )
    split = EdgeInferenceEngine(config, clouds) if config.edge.split.manifest else None
    embeddings = EmbeddingEngine(config.edge.embeddings) if config.edge.embeddings.path else None
    private = PrivatePatterns(config.inference.private_patterns) if config.inference.private_patterns else None
    async with (
        kept(use, config.inference.budget.database),
        clouds,
        engine,
        ChatTemplate(engine.chat_template or "", bos=engine.bos, eos=engine.eos) as template,
        _knowledge(config, engine, clouds, template) as vocabulary,
        split or nullcontext(),
        embeddings or nullcontext(),
        private or nullcontext(),
    ):
        log_settings(engine.model_name, engine.settings())
        await clouds.check_protocols()
        _register(registry, clouds, split)
        routes = _router_of_mode(config, engine.model_name)
        plan, online = replace(_plan(config), handover=vocabulary.handover), config.inference.online
        with _kept_estimates(config, engine.model_name) as estimates:
            yield ServerContext(
                config=config,
                plan=plan,
                engine=engine,
                template=template,
                clouds=clouds,
                vocabulary=vocabulary,
                drafts=DraftGenerator(engine, config.inference.features.use_kv_cache and config.edge.kv_cache.enabled),
                metrics=AnswerMetrics(registry),
                savings=Savings(config.communication.prices),
                costs=CostAccount(config.communication.prices, config.inference.budget, registry, use, limits),
                quotas=Quotas(limits, registry),
                private=private,
                online=OnlineGate(online, plan.gate) if online.enabled else None,
                router=routes,
                split=split,
                embeddings=embeddings,
                estimates=estimates,
                text_clouds=vocabulary if isinstance(vocabulary, TextClouds) else None,
            )


def _router_of_mode(config: Config, model: str) -> Router | None:
    """The router; raises ConfigError where there is none and the config's mode needs one."""
    found = _router(config, model)
    if found is None and config.inference.mode is Mode.ROUTE:
        raise ConfigError("inference.mode: route needs a router for this edge's model, in edge.router.path")
    return found


def _router(config: Config, model: str) -> Router | None:
    """Of mode route; None at an edge without a model, which answers nothing by itself.

    What is shipped for the demo pair is for no other model, and may be missing.
    """
    path = config.edge.router.path
    file, demo = shipped(path), path == RouterConfig().path
    if not (path and config.edge.model.path) or (demo and not file.exists()):
        return None
    found = router.load(file)
    if found.training.edge_model != model:
        if demo:
            return None
        log.warning("%s was trained on %s, not on %s: calibrate a router", path, found.training.edge_model, model)
    trained, strategy = found.training.strategy, config.edge.confidence.strategy
    if trained is not strategy and found.tokens:
        log.warning("%s was trained with confidences of strategy %s, not %s", path, trained, strategy)
    return found


def _register(registry: CollectorRegistry, clouds: CloudPool, split: EdgeInferenceEngine | None) -> None:
    """What is measured elsewhere, and read when the metrics are."""
    registry.register(CloudsCollector(clouds))
    if split:
        registry.register(SegmentsCollector(split.segments))


def _knowledge(
    config: Config, engine: EdgeModel, clouds: CloudPool, template: ChatTemplate
) -> CloudVocabulary | TextClouds:
    if config.communication.kind is CloudKind.OPENAI:
        return TextClouds(engine, clouds, template)
    return CloudVocabulary(engine, clouds.get, template)


def _check_parts(config: Config) -> None:
    """Raises ConfigError for a mode without its model, and for what needs clouds that verify."""
    if config.inference.mode is Mode.SPLIT and not config.edge.split.manifest:
        raise ConfigError("inference.mode: split needs a split model, in edge.split.manifest")
    needs = {
        "edge.model.path: an edge without a model": not config.edge.model.path,
        "edge.split.manifest: mode split": bool(config.edge.split.manifest),
        "inference.online: a gate that learns": config.inference.online.enabled,
    }
    if config.communication.kind is CloudKind.OPENAI and (found := [name for name, used in needs.items() if used]):
        raise ConfigError(f"{found[0]} needs clouds of kind edgecloud")


@contextmanager
def _kept_estimates(config: Config, model: str) -> Iterator[Estimates]:
    """The estimates that the last server kept in the folder of KV snapshots, if there is one; kept again at the end."""
    folder = config.edge.kv_cache.directory
    if not folder:
        yield Estimates()
        return
    pair = hashlib.blake2b(
        "\n".join([model, *(entry.url for entry in config.communication.entries.values())]).encode(), digest_size=16
    ).hexdigest()
    estimates = saved_estimates.load(Path(folder), pair)
    try:
        yield estimates
    finally:
        saved_estimates.save(estimates, Path(folder), pair)


def _plan(config: Config) -> Plan:
    """The plan of a request that sets none of it itself; without a model at the edge it is lossless.

    Then the cloud streams, so that an answer that repeats nothing is as fast as the cloud alone, and without a cloud
    there is no answer.
    """
    plan = replace(default_plan(config), mode=config.inference.mode)
    if config.edge.model.path:
        return plan
    mode = plan.verification_mode
    if mode is VerificationMode.AUTO:
        mode = VerificationMode.CONTINUOUS
    return replace(plan, use_confidence_check=False, fallback=False, verification_mode=mode)


def _engine(config: EdgeConfig, confidence: Confidence) -> EdgeEngine:
    weight = weights_of(config.quotas)
    store = _store(config.kv_cache)
    return EdgeEngine(config.model, confidence=confidence, store=store, limits=config.limits, weight=weight)


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
