"""How tokens are drawn: the sampling parameters of one answer."""

from typing import Annotated

import msgspec
from msgspec import Struct

from common.grammar.spec import GrammarSpec

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What a user may give, as in OpenAI's API and vLLM."""
SEEDS = 2**63
"""The seeds that all engines take are 0 and more, and below this."""


class Sampling(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How tokens are drawn. `temperature` 0 is greedy; the other defaults switch each filter and penalty off.

    `seed` determines the draw at each position; -1 is none, as in vLLM and llama.cpp, and another negative one is kept
    modulo SEEDS. The answer begins after `prompt_tokens` tokens (None: after all given ones): presence and frequency
    penalties and `grammar` apply from there on. With `ignore_eos` it goes on after an end token; no end token is drawn
    among its first `min_tokens` tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: Seed | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    grammar: GrammarSpec | None = None
    prompt_tokens: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Added to the logits of these tokens, before penalties; not where a cloud verifies, since vLLM refuses it then."""

    def __post_init__(self) -> None:
        if self.seed is not None:
            msgspec.structs.force_setattr(self, "seed", None if self.seed == -1 else self.seed % SEEDS)


GREEDY = Sampling()
