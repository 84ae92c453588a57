"""What all requests of one edge server share: its config, models, clouds, measurements and counters."""

import time
from dataclasses import dataclass, field

from common.cloud_client.pool import CloudPool
from common.cloud_client.privacy import PrivatePatterns
from common.config_schema import Config
from common.decoding.estimates import Estimates
from common.decoding.online_gate import OnlineGate
from common.decoding.policy import Plan
from common.errors import RequestError
from common.types import Collaboration, Mode
from edge.api.cloud_vocabulary import CloudVocabulary
from edge.draft_generator import DraftGenerator
from edge.engine.engine import EdgeEngine
from edge.engine.text_model import TextModel
from edge.metrics import AnswerMetrics
from edge.split.engine import EdgeInferenceEngine
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
    engine: EdgeEngine
    template: ChatTemplate
    clouds: CloudPool
    vocabulary: CloudVocabulary
    drafts: DraftGenerator
    metrics: AnswerMetrics
    private: PrivatePatterns | None = None
    """What never leaves the edge, if the config says so."""
    online: OnlineGate | None = None
    """The gate that adapts to the traffic, if the config enables it."""
    split: EdgeInferenceEngine | None = None
    """The edge's part of a split model, if the config names one."""
    estimates: Estimates = field(default_factory=Estimates)
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""

    @property
    def models(self) -> dict[str, TextModel]:
        """All models that requests can name, the default first; each answers in its own modes."""
        models: dict[str, TextModel] = {self.engine.model_name: self.engine}
        if self.split is not None:
            models.setdefault(self.split.segments.model_name, self.split.segments)
        return models

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
    def split_engine(self) -> EdgeInferenceEngine:
        """Raises RequestError if the server has no split model."""
        if self.split is None:
            hint = "set edge.split.manifest to what `python -m models.partition` wrote"
            raise RequestError(
                f'mode "split" needs a split model, which this server does not have: {hint}', param="mode"
            )
        return self.split

    def record_answer(self, report: Collaboration) -> None:
        """Counts an answer that has ended, also if its client left."""
        self.clouds.degraded_answers += report.degraded is not None
        self.metrics.record_answer(report)
