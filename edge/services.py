"""What every request of one edge server shares. Knows no request."""

import time
from dataclasses import dataclass, field

from common.config import Config
from common.connection import HTTPClient
from edge.chat_template import ChatTemplate
from edge.cloud_vocabulary import CloudVocabulary
from edge.engine import EdgeEngine


@dataclass(frozen=True)
class Services:
    """The server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    cloud: HTTPClient
    vocabulary: CloudVocabulary
    began: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""
