"""What all requests of one edge server share: its config, models, clouds, measurements and counters."""

import time
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from common.cloud_client.pool import Cloud, CloudPool
from common.cloud_client.privacy import PrivatePatterns
from common.config_schema import Config
from common.decoding.estimates import Estimates
from common.decoding.online_gate import OnlineGate
from common.decoding.policy import Plan
from common.errors import EngineError, RequestError
from common.lookup.lookup import MatchRate
from common.routing.router import Router
from common.types import Collaboration, Mode
from edge.api.clouds.shared_prompt import CloudKnowledge
from edge.api.clouds.text_clouds import TextClouds
from edge.costs import NO_OWN_PRICES, CostAccount
from edge.draft_generator import DraftGenerator
from edge.engine.edge_model import EdgeModel
from edge.engine.embedding_engine import EmbeddingEngine
from edge.engine.text_model import TextModel
from edge.metrics import AnswerMetrics
from edge.savings import Savings
from edge.split.engine import EdgeInferenceEngine
from edge.tenants.quotas import Quotas
from edge.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class ServedModel:
    """A model on the edge and its chat template."""

    engine: TextModel
    template: ChatTemplate
    context_length: int
    """Tokens of the longest context that may answer its prompts."""


@dataclass(frozen=True)
class ServerContext:
    """Made once by `edge/api/startup.py`, which also starts and closes the parts."""

    config: Config
    plan: Plan
    """The plan of a request that sets none of it itself."""
    engine: EdgeModel
    template: ChatTemplate
    clouds: CloudPool
    vocabulary: CloudKnowledge
    drafts: DraftGenerator
    metrics: AnswerMetrics
    savings: Savings
    costs: CostAccount
    quotas: Quotas
    private: PrivatePatterns | None = None
    """What never leaves the edge, if the config says so."""
    online: OnlineGate | None = None
    """The gate that adapts to the traffic, if the config enables it."""
    router: Router | None = None
    """What decides in mode route, if the config names a file and the edge has a model."""
    split: EdgeInferenceEngine | None = None
    """The edge's part of a split model, if the config names one."""
    embeddings: EmbeddingEngine | None = None
    """The model for embeddings, if the config names one."""
    estimates: Estimates = field(default_factory=Estimates)
    text_clouds: TextClouds | None = None
    """The clouds, if they are servers with OpenAI's API: they take whole requests."""
    routed_clouds: set[str] = field(default_factory=set)
    """Cloud models that the router has decided about."""
    match_rate: MatchRate = field(default_factory=MatchRate)
    """How much answers repeat what they were asked, and themselves."""
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""

    def model(self, mode: Mode) -> ServedModel:
        """The model that reads the prompts and writes the answers in this mode; RequestError if there is none."""
        if mode is Mode.SPLIT:
            split = self.split_engine
            return ServedModel(split.segments, split.template, split.segments.context_length)
        cloud = None if mode is Mode.EDGE_ONLY else self.vocabulary.context_length
        return ServedModel(self.engine, self.template, max(self.engine.context_length, self.allowed(cloud or 0)))

    def allowed(self, tokens: int) -> int:
        """The tokens of one request, prompt and answer, of `tokens` that fit a context: the config may limit them."""
        limit = self.config.edge.limits.max_tokens_request
        return min(tokens, limit) if limit else tokens

    @property
    def route_threshold(self) -> float:
        """The score of the router from which on the cloud answers, unless a request says otherwise."""
        assert self.router is not None, "there is one"
        configured = self.config.edge.router.threshold
        return self.router.threshold if configured is None else configured

    def router_stats(self) -> dict[str, object]:
        """What the router looks at and was trained on, and the threshold that holds."""
        assert self.router is not None, "there is one"
        shown: dict[str, object] = msgspec.to_builtins(self.router)
        return shown | {"threshold": self.route_threshold}

    @property
    def split_engine(self) -> EdgeInferenceEngine:
        """Raises RequestError if the server has no split model."""
        if self.split is None:
            hint = "set edge.split.manifest to what `python -m models.partition` wrote"
            raise RequestError(
                f'mode "split" needs a split model, which this server does not have: {hint}', param="mode"
            )
        return self.split

    def check_alive(self) -> None:
        """Raises EngineError when a model's thread has stopped or is stuck in a step: only a new start helps."""
        alive = self.engine.alive and (self.embeddings is None or self.embeddings.alive)
        if not alive or (self.split and not self.split.segments.alive):
            raise EngineError("the edge engine has stopped, or is stuck in a step")

    def record_answer(self, report: Collaboration, prompt_tokens: int, cloud: Cloud | None = None) -> None:
        """Counts an answer that has ended, also if its client left; `cloud`: the last that took part in it."""
        self.clouds.degraded_answers += report.degraded is not None
        self.metrics.record_answer(report)
        self.savings.record(report, prompt_tokens)
        self.costs.record(report, prompt_tokens, cloud.entry.prices if cloud else NO_OWN_PRICES)
        self.quotas.record(sum(report.tokens.values()))

    def record_passed_on(self, guessed: int, tokens: int, cloud: Cloud) -> None:
        """Counts a request that a cloud has read, and that is no answer; `guessed` tokens of it were admitted."""
        self.costs.record_read(tokens, cloud.entry.prices)
        self.quotas.settle_prompt(guessed, tokens)


CONTEXT = web.AppKey("CONTEXT", ServerContext)
"""The context of an edge server's application, once it has started."""
