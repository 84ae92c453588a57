"""Restricts an answer to a JSON schema with llama.cpp's grammar sampler."""

import ctypes
import json
from collections.abc import Callable, Sequence

import llama_cpp as c
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf

from common.errors import EngineError, RequestError
from edge.llama import json_schema
from edge.llama.batch import pointer
from edge.llama.sampling import Logits
from edge.llama.vocabulary import LlamaVocabulary

MAX_SCHEMA = 65536
"""The most characters of a schema."""
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""The layout of llama_token_data."""


class Grammar:
    """The grammar of one answer, with its state; used in the engine's thread, which must free it.

    Raises RequestError for a schema that llama.cpp has no grammar for.
    """

    def __init__(self, vocabulary: LlamaVocabulary, schema: str) -> None:
        self.schema = schema
        self._sampler = c.llama_sampler_init_grammar(vocabulary.pointer, _gbnf(schema).encode(), b"root")
        if not self._sampler:
            raise RequestError("llama.cpp has no grammar for this JSON schema", param="response_format")
        self._candidates = np.zeros(vocabulary.size, CANDIDATE)
        self._accepted: list[int] = []

    def free(self) -> None:
        c.llama_sampler_free(self._sampler)

    def follow(self, answer: Sequence[int]) -> bool:
        """Moves the grammar to the end of `answer`, from the start if need be; whether the answer fits the schema."""
        count = len(self._accepted)
        if self._accepted != list(answer[:count]):
            c.llama_sampler_reset(self._sampler)
            self._accepted = []
            count = 0
        return all(self._accept(token) for token in answer[count:])

    def constrain(self, token: int, redraw: Callable[[Logits], int], logits: Logits) -> int:
        """Accepts `token`, drawn from `logits`, [V], if the grammar allows it, else one that `redraw` draws instead.

        `redraw` gets a copy of the logits with only the allowed tokens. Most drawn tokens are allowed; checking one
        costs little, checking the whole vocabulary costs much.
        """
        if not self._accept(token):
            token = redraw(self._allowed(logits))
            if not self._accept(token):
                raise EngineError("no token of the edge model's vocabulary continues the JSON schema's grammar")
        return token

    def _accept(self, token: int) -> bool:
        """Accepts `token` if it is allowed: llama.cpp aborts the process over one that is not."""
        candidate = np.array([(token, 0, 0)], CANDIDATE)
        self._apply(candidate)
        if candidate["logit"][0] == -np.inf:
            return False
        c.llama_sampler_accept(self._sampler, token)
        self._accepted.append(token)
        return True

    def _allowed(self, logits: Logits) -> Logits:
        """A copy of `logits`, [V], with -inf for the tokens that are not allowed."""
        self._candidates["id"] = np.arange(len(logits))
        self._candidates["logit"] = logits
        self._apply(self._candidates)
        return self._candidates["logit"].copy()

    def _apply(self, candidates: np.ndarray) -> None:
        array = c.llama_token_data_array(pointer(candidates, c.llama_token_data), len(candidates), -1, False)
        c.llama_sampler_apply(self._sampler, ctypes.byref(array))


def _gbnf(schema: str) -> str:
    if len(schema) > MAX_SCHEMA:
        raise RequestError(f"the JSON schema has more than {MAX_SCHEMA} characters", param="response_format")
    try:
        json_schema.check(json.loads(schema))
        return str(json_schema_to_gbnf(schema))
    except (ValueError, AssertionError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"llama.cpp has no grammar for this JSON schema: {error}"
        raise RequestError(reason, param="response_format") from error
