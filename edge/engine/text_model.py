"""The text interface of a model on the edge: tokens, special tokens, chat template, context length."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from common.errors import RequestError
from edge.text.fill_in import FillInTokens


class TextVocabulary(Protocol):
    """A model's vocabulary and its header: see `edge.llama.vocabulary.LlamaVocabulary`."""

    @property
    def size(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...
    @property
    def bos(self) -> str: ...
    @property
    def eos(self) -> str: ...
    @property
    def fill_in(self) -> FillInTokens | None: ...
    def meta(self, key: str) -> str | None: ...
    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token_id: int, special: bool) -> bytes: ...


MAX_IDS = 100_000
"""Token ids in one list; detokenizing so many takes a tenth of a second."""
SHORT_TEXT = 4096
"""Bytes that are tokenized in a fraction of a millisecond, so the event loop may do it itself."""


class TextModel(ABC):
    """Base of the whole model and of the split model's segments.

    A vocabulary never changes: any thread may use all of this while the model is loaded.
    """

    @property
    @abstractmethod
    def vocabulary(self) -> TextVocabulary:
        """Raises EngineError if the model is not loaded."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """The most tokens of one request, prompt and answer together."""

    @property
    @abstractmethod
    def model_name(self) -> str: ...

    @abstractmethod
    def admit(self, requests: int, tokens: int) -> AbstractContextManager[None]:
        """Around answers of which `requests` at once are promised a sequence; `tokens`: of their prompts.

        Raises OverloadedError if the queue is full, or too many tokens are in progress.
        """

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.vocabulary.end_tokens

    @property
    def chat_template(self) -> str | None:
        return self.vocabulary.meta("tokenizer.chat_template")

    @property
    def bos(self) -> str:
        """The text of the token that begins prompts; empty if there is none."""
        return self.vocabulary.bos

    @property
    def eos(self) -> str:
        """The text of the token that ends answers; empty if there is none."""
        return self.vocabulary.eos

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raises RequestError for an id outside the vocabulary, and for more than MAX_IDS ids."""
        if len(token_ids) > MAX_IDS:
            raise RequestError(f"more than {MAX_IDS} token ids", param=param)
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
            raise RequestError(f"token ids must be in 0..{self.vocab_size - 1}", param=param)

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds what the model begins a prompt with; `parse_special` reads text such as `<|user|>` as one
        special token.
        """
        return self.vocabulary.tokenize(text.encode(), add_special, parse_special)

    def piece(self, token_id: int, special: bool = False) -> bytes:
        """The bytes of one token, perhaps only part of a character; empty for a special token unless `special`."""
        return self.vocabulary.piece(token_id, special)

    def detokenize(self, token_ids: Sequence[int], special: bool = False) -> str:
        """The text of `token_ids`; bytes that form no character become U+FFFD."""
        return b"".join(self.piece(token, special) for token in token_ids).decode(errors="replace")
