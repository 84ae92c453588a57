"""One answer of `GET /stream` that outlives its replica: what is left of it is another answer, on another replica."""

from typing import Any, cast

from msgspec.structs import replace

from common.errors import RequestError
from common.protocol import codec
from common.protocol.stream_frames import (
    ClientFrame,
    EndFrame,
    ErrorFrame,
    ServerFrame,
    StartFrame,
    TokensFrame,
)
from common.types import FinishReason


class ResumableAnswer:
    """What an answer's frames have said so far.

    Its last frame counts the steps and drafts of all its parts, as far as these are known: what a lost replica had
    rejected is not.
    """

    def __init__(self, start: StartFrame) -> None:
        self._start = start
        self._tokens: list[int] = []
        self._steps = self._accepted = 0
        """Of the parts before the one that runs; likewise `_tokens` of all."""
        self._part_steps = self._part_accepted = 0
        self._finish_reason: FinishReason | None = None
        self.ended = False
        """Whether its last frame has come."""
        self.losses = 0
        """Replicas that were lost at work on it since its last token."""

    @property
    def rest(self) -> StartFrame:
        """The start of what is left: the answer so far is committed, and stays an answer (and no prompt) to sampling.

        A seed is not repeated: that of an answer depends on where it begins.
        """
        start = self._start
        if not self._tokens:
            return start
        sampling = start.sampling
        if sampling.prompt_tokens is None:
            sampling = replace(sampling, prompt_tokens=len(start.token_ids))
        left = start.max_tokens - len(self._tokens)
        return replace(start, token_ids=start.token_ids + self._tokens, max_tokens=left, sampling=sampling)

    @property
    def end(self) -> EndFrame | None:
        """The last frame, where only that is missing; None while tokens are missing."""
        if self._finish_reason is None:
            return None
        accepted = self._accepted + self._part_accepted
        steps = self._steps + self._part_steps
        return EndFrame(finish_reason=self._finish_reason, steps=steps, drafted=accepted, accepted=accepted)

    @property
    def may_go_on(self) -> bool:
        """Whether another replica can go on: none knows which part of a stop string was already there."""
        return not (self._start.stop and self._tokens)

    def lose_replica(self, at_work: bool = True) -> None:
        """The part that runs is lost; the next one begins where it was."""
        if self._part_steps or self._part_accepted:
            self.losses = 0
        self.losses += at_work
        self._steps += self._part_steps
        self._accepted += self._part_accepted
        self._part_steps = self._part_accepted = 0

    def record(self, frame: ServerFrame) -> ServerFrame:
        """Enters a frame of the running part; returns the frame to pass on in its place."""
        if isinstance(frame, TokensFrame):
            self._tokens += frame.token_ids
            self._part_accepted += frame.accepted
            self._part_steps += len(frame.token_ids) - frame.accepted
            self._finish_reason = frame.finish_reason
        if isinstance(frame, EndFrame):
            self.ended = True
            if self._steps:
                steps, accepted = frame.steps + self._steps, frame.accepted + self._accepted
                drafted = frame.drafted + self._accepted
                return replace(frame, steps=steps, accepted=accepted, drafted=drafted, cloud_ms=0.0)
        return frame


def client_frame(data: bytes, text: bool) -> ClientFrame | None:
    """A client's frame; None for one that cannot be read."""
    try:
        return codec.decode(data, cast(Any, ClientFrame), codec.JSON if text else codec.MSGPACK)
    except RequestError:
        return None


def server_frame(data: bytes, text: bool) -> ServerFrame | None:
    """A replica's frame; None for one that cannot be read."""
    try:
        return codec.decode(data, cast(Any, ServerFrame), codec.JSON if text else codec.MSGPACK)
    except RequestError:
        return None


def is_for_another(frame: ErrorFrame) -> bool:
    """Whether another replica may do what this one cannot: it is no fault of the request."""
    return frame.error.type in ("server_error", "rate_limit_error")
