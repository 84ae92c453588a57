"""Restricts an answer to a grammar: follows its tokens, and masks the logits of those that may not come next."""

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from common.errors import EngineError, GrammarError
from common.grammar.spec import GrammarSpec
from common.protocol.prefix_hash import common_prefix
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

SPECIAL = b"\xff"
"""Begins the name of a special token, which no text contains."""


def tokenizer_of(vocabulary: LlamaVocabulary) -> LLTokenizer:
    """The bytes of each token, for llguidance; takes about a second for 150,000 tokens."""
    return LLTokenizer(_TokenBytes(vocabulary), eos_token=sorted(vocabulary.end_tokens))


class _TokenBytes(TokenizerWrapper):
    """A vocabulary as llguidance reads it. It need not cut texts: the grammars leave that to the model."""

    def __init__(self, vocabulary: LlamaVocabulary) -> None:
        pieces = [
            vocabulary.piece(token) or SPECIAL + vocabulary.piece(token, True) for token in range(vocabulary.size)
        ]
        self.tokens = pieces
        self.special_token_ids = [token for token, piece in enumerate(pieces) if piece.startswith(SPECIAL)]
        self.eos_token_id = min(vocabulary.end_tokens)
        self.bos_token_id = None
        self.is_tokenizer_wrapper = True

    def __call__(self, text: bytes | str) -> list[int]:
        raise NotImplementedError


class AnswerGrammar:
    """The grammar of one answer, with its state; used in the engine's thread."""

    def __init__(self, spec: GrammarSpec, start: LLMatcher, vocabulary: LlamaVocabulary) -> None:
        """`start`: the compiled grammar, which is copied."""
        self.spec = spec
        self._matcher = start.deep_copy()
        self._end_tokens = vocabulary.end_tokens
        self._mask = allocate_token_bitmask(1, vocabulary.size)
        self._accepted: list[int] = []

    def follow(self, answer: Sequence[int]) -> bool:
        """Moves to the end of `answer`; False if it does not match the grammar, or has ended."""
        kept = common_prefix(self._accepted, list(answer))
        if surplus := len(self._accepted) - kept:
            self._matcher.rollback(surplus)
            del self._accepted[kept:]
        new = list(answer[kept:])
        if not self._end_tokens.isdisjoint(new):
            return False
        accepted = self._matcher.try_consume_tokens(new)
        self._check()
        self._accepted += new[:accepted]
        return accepted == len(new)

    def draw(self, logits: Logits, greedy: bool, choose: Callable[[Logits], int]) -> int:
        """A token that the grammar allows, which `choose` draws from `logits`, [V], and moves on past it.

        `choose` gets a copy of the logits with -inf for what is not allowed; if it is `greedy`, first the logits
        themselves: most likeliest tokens are allowed, and to check one costs little.
        """
        token = choose(logits) if greedy else -1
        if not (greedy and self._accept(token)):
            token = choose(self._allowed(logits))
            if not self._accept(token):
                raise EngineError("no token of the edge model's vocabulary continues the answer's grammar")
        return token

    def _accept(self, token: int) -> bool:
        """Moves on past `token` if it is allowed."""
        if token in self._end_tokens:
            allowed = self._matcher.is_accepting()
        else:
            allowed = bool(self._matcher.try_consume_tokens([token]))
            self._accepted += [token] * allowed
        self._check()
        return allowed

    def _allowed(self, logits: Logits) -> Logits:
        fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        bits = np.unpackbits(self._mask[0].view(np.uint8), count=len(logits), bitorder="little")
        return np.where(bits, logits, np.float32(-np.inf))

    def _check(self) -> None:
        """Raises GrammarError when llguidance has given up: it would allow the end of the answer only."""
        if self._matcher.is_error():
            _give_up(self.spec, self._matcher.get_error())


def _give_up(spec: GrammarSpec, fault: str) -> NoReturn:
    reason = fault.partition("\n")[0][:200]
    raise GrammarError(f"{spec.noun} takes too much work: {reason}", param=spec.param)
