"""Penalties for a cloud that sees no tokens. Pure."""

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from common.types import Sampling


def penalties_as_biases(sampling: Sampling, token_ids: Sequence[int]) -> Sampling:
    """What draws the token after `token_ids` as `sampling` does, without knowing them.

    Presence and frequency penalties are sums, and so biases of the logits of the answer's tokens. The repetition
    penalty divides and cannot be one.
    """
    assert sampling.repetition_penalty == 1, "refused before"
    if not (sampling.presence_penalty or sampling.frequency_penalty):
        return sampling
    biases = dict(sampling.logit_bias)
    begin = len(token_ids) if sampling.prompt_tokens is None else sampling.prompt_tokens
    for token, count in Counter(token_ids[begin:]).items():
        penalty = sampling.presence_penalty + sampling.frequency_penalty * count
        biases[token] = biases.get(token, 0.0) - penalty
    return replace(sampling, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=tuple(biases.items()))
