"""Answers the lines of a batch within the edge itself, each only where no request of a person waits."""

import asyncio
import logging
import uuid

from msgspec import Raw

from common.batch.lines import BatchLine, BatchReply
from common.batch.runner import Attempt
from common.errors import FrameworkError, OverloadedError
from common.http.messages import error_object
from common.http.request_context import current_priority, current_request_id, current_tenant
from common.protocol import codec
from edge.answering import whole
from edge.api.context import ServerContext
from edge.dialects.response_store import ResponseStore
from edge.engine.batch_turns import batch_turns, queue_priority
from edge.privacy.private_requests import act_for

log = logging.getLogger(__name__)


class EdgeTarget:
    """Answers on behalf of one tenant; `private`: nothing of the lines leaves the edge, whatever its keys are now."""

    def __init__(self, context: ServerContext, kept: ResponseStore, tenant: str, private: bool = False) -> None:
        self._context, self._kept, self._tenant, self._private = context, kept, tenant, private
        self._turns = asyncio.Semaphore(self.capacity)
        """A line may have many choices, each of which takes a sequence."""

    @property
    def capacity(self) -> int:
        """Lines in flight, and their choices, at most: all sequences but one, which waits for a person."""
        return max(1, self._context.engine.stats().get("sequences", 2) - 1)

    async def ask(self, line: BatchLine) -> Attempt:
        await self._context.engine.until_idle()
        request_id = uuid.uuid4().hex
        current_request_id.set(request_id)
        current_tenant.set(self._tenant)
        batch_turns.set(self._turns)
        current_priority.set(queue_priority(0))
        act_for(self._tenant, self._context.config.edge.private_keys, self._private)
        status, after = 200, 1
        try:
            with self._context.quotas.request(self._tenant):
                value = await whole(line.url, line.body, self._context, self._kept, self._tenant)
        except FrameworkError as error:
            status, value = error.status, error_object(error)
            after = error.retry_after if isinstance(error, OverloadedError) else after
        except Exception:
            log.exception("a line of a batch failed, request %s", request_id)
            status, value = 500, error_object(FrameworkError("internal error; the server's log has the details"))
        return Attempt(BatchReply(status, request_id, Raw(codec.encode(value))), after)

    async def wait_until_back(self) -> None:
        """The edge is never away from itself."""
