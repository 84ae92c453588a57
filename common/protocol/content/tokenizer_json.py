"""What a tokenizer.json says of its tokens: the bytes of each, and the form that a text is brought into first."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from common.errors import VocabularyError

FORMS = "NFC", "NFD", "NFKC", "NFKD"


def normalizer_of(tokenizer_json: str) -> str:
    """The Unicode form that a tokenizer.json brings texts into; empty if there is none, or something else is done."""
    normalizer = msgspec.json.decode(tokenizer_json, type=_File).normalizer or {}
    steps = normalizer.get("normalizers", [normalizer])
    names = [step.get("type", "") for step in steps]
    return names[0] if len(names) == 1 and names[0] in FORMS else ""


def pieces_of(tokenizer_json: str) -> list[bytes]:
    """The bytes of each id of a tokenizer.json, the text for special tokens; empty for ids it does not have.

    Raises VocabularyError for a tokenizer whose text is not the concatenation of its tokens.
    """
    tokenizer = load(tokenizer_json)
    spell = _speller(tokenizer_json)
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(tokens.values()) + 1)
    for token, token_id in tokens.items():
        pieces[token_id] = spell(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        pieces[token_id] = added.content.encode()
    return pieces


def load(tokenizer_json: str) -> Tokenizer:
    """A tokenizer without truncation and padding; raises VocabularyError if it is not a tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library has no error class of its own
        raise VocabularyError(f"the tokenizer cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _speller(tokenizer_json: str) -> Callable[[str], bytes]:
    """The function from a token of this tokenizer to its bytes."""
    decoders = set(_decoder_types(msgspec.json.decode(tokenizer_json, type=_File).decoder))
    if "ByteLevel" in decoders:
        return lambda token: bytes(BYTES[letter] for letter in token) if BYTES.keys() >= set(token) else token.encode()
    if decoders & {"ByteFallback", "Metaspace"}:
        return _sentence_piece
    names = "+".join(sorted(decoders)) or "none"
    raise VocabularyError(f"a tokenizer with the decoder {names} cannot be translated")


class _File(Struct):
    """The parts of a tokenizer.json that describe how tokens become text, and what happens to a text first."""

    normalizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def _decoder_types(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [decoder["type"], *(name for part in decoder.get("decoders", []) for name in _decoder_types(part))]


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """The byte of each character of GPT-2's byte-level alphabet: printable bytes are themselves, others from 256."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES = _byte_letters()
