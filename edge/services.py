"""What every request of one edge server shares. Knows no request."""

from dataclasses import dataclass

from common.config import Config
from common.connection import HTTPClient
from edge.chat_template import ChatTemplate
from edge.engine import EdgeEngine


@dataclass(frozen=True)
class Services:
    """The server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    cloud: HTTPClient
