"""The plugin with one guard taken out, inside vLLM's own processes: what tests must notice. For tests only."""

from typing import Any
from unittest import mock

import torch
from vllm.v1.sample import rejection_sampler

from cloud.vllm_plugin import cpu_guards
from cloud.vllm_plugin.mailbox import Mailboxes
from cloud.vllm_plugin.scheduler import NoProposer, RemoteDraftScheduler


class UnguardedProposer(NoProposer):
    """vLLM makes the proposer in the process that samples, after the plugin has put its guards there."""

    def __init__(self, vllm_config: object) -> None:
        super().__init__(vllm_config)
        rejection_sampler.expand_batch_to_tokens = unguarded_expand


def unguarded_expand(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """vLLM's own, in memory that holds ones: what is left there by chance may be the right values of a step before."""
    with mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_ones):
        return cpu_guards.unguarded_expand(x, *args, **kwargs)


class CredulousScheduler(RemoteDraftScheduler):
    """vLLM makes the scheduler in the process that has the mailboxes: here they take drafts that were contradicted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Mailboxes.agrees = staticmethod(lambda mail, token_ids: True)  # type: ignore[method-assign]
