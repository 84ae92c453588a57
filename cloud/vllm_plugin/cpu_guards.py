"""Patch: guards against three faults of vLLM 0.32 on CPU.

Two functions of the rejection sampler, through which every step goes once a speculative config is set, are replaced;
seeded requests get a `RewindingGenerator`. Each guard has a test that fails when vLLM no longer needs it.
"""

import functools
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler


class RewindingGenerator(torch.Generator):
    """A generator that returns to its mark when vLLM sets back its offset.

    A step that ends within a prompt draws a token that nobody uses, and vLLM then sets the offset of the request's
    generator back. A generator for the CPU has no offset: it raises, and that ends the engine.
    """

    def mark(self) -> None:
        """Call it when a request enters a batch: steps whose token is unused come before all others there."""
        self._mark = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        self.set_state(self._mark)


def install() -> None:
    """Replaces both functions if vLLM runs on CPU here; on other platforms its own functions are right."""
    if current_platform.is_cpu():
        rejection_sampler.expand_batch_to_tokens = _guarded_expand(rejection_sampler.expand_batch_to_tokens)
        rejection_sampler.apply_top_k_top_p = _guarded_top_k_top_p(rejection_sampler.apply_top_k_top_p)


def _guarded_expand(unguarded: Any) -> Any:
    @functools.wraps(unguarded, assigned=(), updated=())
    def expand_batch_to_tokens(
        x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
    ) -> torch.Tensor:
        """Repeats each request's value of `x` (shape [requests]) for each of its draft tokens (result: [num_tokens]).

        vLLM's kernel for the CPU converts float32 and int32 results to a copy and never writes the copy back, so that
        temperature, top-k and top-p of sampled requests are uninitialised memory.
        """
        repeats = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
        expanded = torch.repeat_interleave(x, repeats, output_size=num_tokens)
        return expanded.masked_fill_(expanded == replace_from, replace_to)

    return expand_batch_to_tokens


def _guarded_top_k_top_p(unguarded: Any) -> Any:
    @functools.wraps(unguarded, assigned=(), updated=())
    def apply_top_k_top_p(logits: torch.Tensor, *filters: Any, **options: Any) -> torch.Tensor:
        """Masks all but the top-k and top-p of each row of `logits`, which may have no rows.

        It has none in a step without drafts; vLLM then takes the maximum of the empty `k`, which raises and ends the
        engine.
        """
        return unguarded(logits, *filters, **options) if logits.shape[0] else logits

    return apply_top_k_top_p
