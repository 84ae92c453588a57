"""What every request of one edge server shares. Knows no request but its mode."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.cloud_client.pool import CloudPool
from common.config_schema import Config
from common.decoding.estimates import Estimates
from common.decoding.online_gate import OnlineGate
from common.decoding.privacy import is_private
from common.errors import RequestError
from common.types import Collaboration, Mode
from edge.answer_metrics import AnswerMetrics
from edge.api.cloud_vocabulary import CloudVocabulary
from edge.engine.engine import EdgeEngine
from edge.engine.text_model import TextModel
from edge.split.engine import EdgeInferenceEngine
from edge.text.chat_template import ChatTemplate


@dataclass(frozen=True)
class Speaker:
    """A model on the edge and its chat form."""

    engine: TextModel
    template: ChatTemplate


@dataclass(frozen=True)
class Services:
    """The server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    clouds: CloudPool
    vocabulary: CloudVocabulary
    metrics: AnswerMetrics
    online: OnlineGate | None = None
    """The gate that follows the traffic, if the config asks for one."""
    split: EdgeInferenceEngine | None = None
    """The edge's half of a split model, if the config names one."""
    estimates: Estimates = field(default_factory=Estimates)
    began: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""

    def speaker(self, mode: Mode) -> Speaker:
        """Who reads the prompts and writes the answers in this mode; RequestError if that is nobody."""
        if mode is not Mode.SPLIT:
            return Speaker(self.engine, self.template)
        return Speaker(self.split_engine.segments, self.split_engine.template)

    @property
    def split_engine(self) -> EdgeInferenceEngine:
        """Raises RequestError if there is none."""
        if self.split is None:
            says = "set edge.split.manifest to what `python -m models.partition` wrote"
            raise RequestError(f'mode "split" needs a split model, which this server has not: {says}', param="mode")
        return self.split

    def ended(self, report: Collaboration) -> None:
        """One answer has ended, or its client left; its report is counted."""
        self.clouds.degraded_answers += report.degraded is not None
        self.metrics.ended(report)

    def is_private(self, prompt: Sequence[int], mode: Mode) -> bool:
        """Whether a pattern of the config is found in the prompt, as the text that its tokens are."""
        engine = self.speaker(mode).engine
        patterns = self.config.inference.private_patterns
        return bool(patterns) and is_private(engine.detokenize(list(prompt), special=True), patterns)
