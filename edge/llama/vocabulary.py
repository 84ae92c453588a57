"""A model's vocabulary and header: text to token ids and back, special tokens, metadata."""

import ctypes
from typing import Any

import llama_cpp as c


class LlamaVocabulary:
    """Immutable; any thread may use it while its model is loaded."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.pointer = c.llama_model_get_vocab(model)
        self.size: int = c.llama_vocab_n_tokens(self.pointer)
        self.end_tokens = frozenset(t for t in range(self.size) if c.llama_vocab_is_eog(self.pointer, t))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self.bos = self._special_text(c.llama_vocab_bos(self.pointer))
        """The text of the token that begins prompts; empty if there is none."""
        self.eos = self._special_text(c.llama_vocab_eos(self.pointer))
        """The text of the token that ends answers; empty if there is none."""

    def meta(self, key: str) -> str | None:
        """The value of a metadata key in the file's header, as text; None if the key is missing."""
        size = c.llama_model_meta_val_str(self._model, key.encode(), b"", 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        c.llama_model_meta_val_str(self._model, key.encode(), buffer, size + 1)
        return buffer.value.decode(errors="replace")

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of UTF-8 `text`; see `TextModel.tokenize`."""
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

    def _special_text(self, token_id: int) -> str:
        # If the file names no token for a role, llama.cpp may name an ordinary token.
        special = token_id >= 0 and c.llama_vocab_is_control(self.pointer, token_id)
        return self.piece(token_id, True).decode(errors="replace") if special else ""
