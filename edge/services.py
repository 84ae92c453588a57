"""What every request of one edge server shares. Knows no request."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.clouds import Clouds
from common.config_keys import Config
from common.estimates import Estimates
from common.online_gate import OnlineGate
from common.privacy import is_private
from common.types import Collaboration
from edge.answer_metrics import AnswerMetrics
from edge.chat_template import ChatTemplate
from edge.cloud_vocabulary import CloudVocabulary
from edge.engine import EdgeEngine


@dataclass(frozen=True)
class Services:
    """The server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    clouds: Clouds
    vocabulary: CloudVocabulary
    metrics: AnswerMetrics
    online: OnlineGate | None = None
    """The gate that follows the traffic, if the config asks for one."""
    estimates: Estimates = field(default_factory=Estimates)
    began: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""

    def ended(self, report: Collaboration) -> None:
        """One answer has ended, or its client left; its report is counted."""
        self.clouds.degraded += report.degraded is not None
        self.metrics.ended(report)

    def is_private(self, prompt: Sequence[int]) -> bool:
        """Whether a pattern of the config is found in the prompt, as the text that its tokens are."""
        patterns = self.config.inference.private_patterns
        return bool(patterns) and is_private(self.engine.detokenize(list(prompt), special=True), patterns)
