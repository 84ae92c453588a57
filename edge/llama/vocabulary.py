"""A model's vocabulary and header: text to token ids and back, special tokens, metadata."""

import ctypes
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import llama_cpp as c

from common.errors import RequestError
from edge.text.fill_in import FillInTokens

T = TypeVar("T")
FLAT = frozenset({"gpt-2", "llama-bpe", "llama3", "llama-v3", "pixtral", "lfm2", "qwen2", "qwen35", "smollm", "gemma4"})
"""Pre-tokenizers (`tokenizer.ggml.pre`) that llama.cpp runs in loops of its own. The others are std::regex, which
recurses once for each character of a match: a few ten thousand equal characters overflow an ordinary stack."""
SHORT = 4096
"""Bytes that overflow no stack: 556 bytes of stack a character were the most that any pre-tokenizer took."""
LONGEST_RUN = 32_768
"""Characters without or of white space, for pre-tokenizers that recurse."""
STACK = 64 * 2**20
"""Bytes of stack for a longest run; only what is used becomes memory."""
RUNS = re.compile(r"(?:\w\s)+|\S+|\s+")
"""What one match of a pre-tokenizer cannot exceed; one of them matches single letters with spaces between."""
_stack_size = threading.Lock()


class LlamaVocabulary:
    """Immutable; any thread may use it while its model is loaded."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.pointer = c.llama_model_get_vocab(model)
        self.size: int = c.llama_vocab_n_tokens(self.pointer)
        self.end_tokens = frozenset(t for t in range(self.size) if c.llama_vocab_is_eog(self.pointer, t))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        regular_expressions = c.llama_vocab_type(self.pointer) == c.LLAMA_VOCAB_TYPE_BPE
        self._recurses = regular_expressions and self.meta("tokenizer.ggml.pre") not in FLAT
        self.bos = self._special_text(c.llama_vocab_bos(self.pointer))
        """The text of the token that begins prompts; empty if there is none."""
        self.eos = self._special_text(c.llama_vocab_eos(self.pointer))
        """The text of the token that ends answers; empty if there is none."""
        self.fill_in = self._fill_in()
        """The special tokens for filling in; None: the model was not trained for it."""

    def meta(self, key: str) -> str | None:
        """The value of a metadata key in the file's header, as text; None if the key is missing."""
        size = c.llama_model_meta_val_str(self._model, key.encode(), b"", 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        c.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`; see `TextModel.tokenize`.

        Raises RequestError for a text that llama.cpp would not survive: a run of more than LONGEST_RUN characters.
        """
        if not self._recurses or len(text) <= SHORT:
            return self._tokenize(text, add_special, parse_special)
        if len(text) > LONGEST_RUN and any(len(run[0]) > LONGEST_RUN for run in RUNS.finditer(text.decode())):
            raise RequestError(
                f"over {LONGEST_RUN} characters without a space, or of white space: this model's "
                "tokenizer takes no more; break them up",
                param="prompt",
            )
        return _on_deep_stack(lambda: self._tokenize(text, add_special, parse_special))

    def _tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        capacity = len(text) + 8
        ids = (c.llama_token * capacity)()
        count = c.llama_tokenize(self.pointer, text, len(text), ids, capacity, add_special, parse_special)
        assert count >= 0, "more tokens than bytes"
        return list(ids[:count])

    def piece(self, token_id: int, special: bool = False) -> bytes:
        """The bytes of one token, perhaps only part of a character; empty for a special token unless `special`."""
        key = (token_id, special)
        if key not in self._pieces:
            size = -c.llama_token_to_piece(self.pointer, token_id, b"", 0, 0, special)
            buffer = ctypes.create_string_buffer(max(size, 0))
            c.llama_token_to_piece(self.pointer, token_id, buffer, size, 0, special)
            self._pieces[key] = buffer.raw
        return self._pieces[key]

    def _fill_in(self) -> FillInTokens | None:
        of_gap = [one(self.pointer) for one in (c.llama_vocab_fim_pre, c.llama_vocab_fim_suf, c.llama_vocab_fim_mid)]
        if min(of_gap) < 0:
            return None
        files = [one(self.pointer) for one in (c.llama_vocab_fim_rep, c.llama_vocab_fim_sep)]
        begin = c.llama_vocab_bos(self.pointer) if c.llama_vocab_get_add_bos(self.pointer) else -1
        return FillInTokens(*of_gap, *(token if token >= 0 else None for token in (*files, begin)))

    def _special_text(self, token_id: int) -> str:
        # If the file names no token for a role, llama.cpp may name an ordinary token.
        special = token_id >= 0 and c.llama_vocab_is_control(self.pointer, token_id)
        return self.piece(token_id, True).decode(errors="replace") if special else ""


def _on_deep_stack(call: Callable[[], T]) -> T:
    """What `call` returns, run in a thread of its own with a stack of STACK bytes."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()), name="edge-tokenizer")
    with _stack_size:
        before = threading.stack_size(STACK)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return results[0]
