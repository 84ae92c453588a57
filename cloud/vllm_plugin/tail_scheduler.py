"""What vLLM imports inside its engine process to run a tail: hidden states in place of a prompt. Knows no sessions.

They travel in `SamplingParams.extra_args[STATES_KEY]`, row after row of float32, with each part of a live request; its
token ids stand for nothing. vLLM's own `prompt_embeds` cannot come in parts, but its worker can take them so.
"""

from typing import Any

import torch
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, StreamingUpdate

from cloud.vllm_plugin import round_seed

STATES_KEY = "hidden_states"

round_seed.install()


class LateRows:
    """To vLLM's worker a `prompt_embeds` of shape [start + n, hidden], of which only the last n rows are there.

    It asks for what its KV does not hold, which these are; anything else is our fault, and ends the engine.
    """

    def __init__(self, start: int, rows: torch.Tensor) -> None:
        self.start = start
        self.rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.rows.shape[1]

    def __len__(self) -> int:
        return self.start + self.rows.shape[0]

    def __getitem__(self, wanted: slice) -> torch.Tensor:
        assert wanted.start >= self.start and wanted.stop <= len(self), "the KV of released hidden states is gone"
        return self.rows[wanted.start - self.start : wanted.stop - self.start]


class TailScheduler(Scheduler):
    """vLLM's scheduler, giving each part of a live request the hidden states that came with it."""

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            _attach(request, 0)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        super()._update_request_as_session(session, update)
        _attach(session, session.num_computed_tokens)


def _attach(request: Request, start: int) -> None:
    """Makes what `request` brought along its inputs from position `start` on; what it brought before is forgotten."""
    params = request.sampling_params
    brought: Any = (params.extra_args or {}).pop(STATES_KEY, b"") if params else b""
    new = request.num_tokens - start
    rows = torch.frombuffer(bytearray(brought), dtype=torch.float32).reshape(new, -1)
    request.prompt_embeds = LateRows(start, rows)
    request.prompt_is_token_ids = [False]  # for however many positions: the worker keeps what the first part said
