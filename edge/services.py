"""What every request of one edge server shares. Knows no request."""

import time
from dataclasses import dataclass, field

from common.config import Config
from common.connection import HTTPClient
from common.online_gate import OnlineGate
from edge.chat_template import ChatTemplate
from edge.engine import EdgeEngine


@dataclass(frozen=True)
class Services:
    """The server owns and closes them."""

    config: Config
    engine: EdgeEngine
    template: ChatTemplate
    cloud: HTTPClient
    online: OnlineGate | None = None
    """The gate that follows the traffic, if the config asks for one."""
    began: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""
