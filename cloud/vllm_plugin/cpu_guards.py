"""Guards against three faults of vLLM 0.32 on CPU. Knows nothing of drafts, engines or requests.

Two functions of the rejection sampler, through which every step goes once a speculative config is set, are replaced;
seeded requests get a generator of their own kind. Each has a test that fails when vLLM no longer needs it.
"""

import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

unguarded_expand = rejection_sampler.expand_batch_to_tokens
unguarded_top_k_top_p = rejection_sampler.apply_top_k_top_p


def expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """Repeat each request's value of `x` (shape [requests]) for each of its draft tokens (result: [num_tokens]).

    vLLM's kernel for the CPU converts float32 and int32 results to a copy and never writes the copy back, so that
    temperature, top-k and top-p of sampled requests are uninitialised memory.
    """
    repeats = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = torch.repeat_interleave(x, repeats, output_size=num_tokens)
    return expanded.masked_fill_(expanded == replace_from, replace_to)


def apply_top_k_top_p(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
    """Mask all but the top-k and top-p of each row of `logits`, of which there may be none.

    A step in which no request has a draft has no rows here; vLLM takes the maximum of the empty `k`, which raises and
    ends the engine.
    """
    return unguarded_top_k_top_p(logits, k, p) if logits.shape[0] else logits


class RewindingGenerator(torch.Generator):
    """A generator that goes back to its mark where vLLM sets back its offset.

    A step that ends in the midst of a prompt draws a token for nothing, and vLLM then sets the offset of the request's
    generator back. One for the CPU has none: it raises, and that ends the engine.
    """

    def mark(self) -> None:
        """To be called when a request enters a batch: steps that draw for nothing come before all others there."""
        self._mark = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> None:
        self.set_state(self._mark)


def install() -> None:
    """Put both guards in place in this process, if vLLM runs on CPU here; elsewhere its own functions are right."""
    if current_platform.is_cpu():
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
        rejection_sampler.apply_top_k_top_p = apply_top_k_top_p
