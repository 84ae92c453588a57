"""The scheduler that vLLM imports inside its engine processes to run a tail: hidden states in place of a prompt.

They travel in `SamplingParams.extra_args[STATES_KEY]`, as rows of float32, with each part of a live request; its token
ids are placeholders. vLLM's API takes `prompt_embeds` only as a whole, but its worker can take them in parts.
Importing this module installs the patches: in vLLM's worker processes `TailWorker` is what is imported.
"""

from typing import Any

import torch
from vllm.v1.request import Request, StreamingUpdate

from cloud.vllm_plugin import patches
from cloud.vllm_plugin.announced_steps import AnnouncingScheduler
from cloud.vllm_plugin.keys import KEEP_KEY, STATES_KEY

patches.install()


class TailWorker:
    """Adds nothing to vLLM's worker, which imports it as `worker_extension_cls`, and with it the patches."""


class LateRows:
    """To vLLM's worker a `prompt_embeds` of shape [start + n, hidden], of which only the last n rows exist.

    The worker reads only positions that are not in its KV, which are these; any other read is a fault of this project,
    and ends the engine.
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


class TailScheduler(AnnouncingScheduler):
    """vLLM's scheduler, which gives each part of a live request the hidden states that came with it."""

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            _attach(request, 0)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        _rewind(session, update)
        super()._update_request_as_session(session, update)
        _attach(session, session.num_computed_tokens)


def _rewind(session: Request, update: StreamingUpdate) -> None:
    """Cuts what a live request holds to the positions that its next part says; their KV blocks stay its own.

    Only for models whose layers attend to all positions: of others vLLM frees the blocks behind the window.
    """
    params = update.sampling_params
    keep = (params.extra_args or {}).get(KEEP_KEY) if params else None
    if keep is not None and keep < session.num_computed_tokens:
        session.num_computed_tokens = keep
        assert session.prompt_token_ids is not None
        del session.prompt_token_ids[keep:]


def _attach(request: Request, start: int) -> None:
    """Makes the states that `request` now carries its inputs from position `start` on, and forgets earlier ones."""
    params = request.sampling_params
    states: Any = (params.extra_args or {}).pop(STATES_KEY, b"") if params else b""
    new = request.num_tokens - start
    rows = torch.frombuffer(bytearray(states), dtype=torch.float32).reshape(new, -1)
    request.prompt_embeds = LateRows(start, rows)
    request.prompt_is_token_ids = [False]  # of one entry for all positions: the worker keeps the first part's
