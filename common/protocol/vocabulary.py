"""Vocabularies: what token ids spell, whether two servers mean the same by them, text as tokens. Knows no model."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from common.errors import VocabularyError

T = TypeVar("T")
ANCHORS = ("\n", "a", ".")
"""Letters to put before a text: with one of them it will not merge."""


class VocabularyInfo(Struct, frozen=True):
    """Answer to GET /tokenizer: `size` ids, of which `fingerprint` says what they spell."""

    fingerprint: str
    size: int


class TokenizerFile(Struct, kw_only=True):
    """Answer to GET /tokenizer/file: `tokenizer` is a tokenizer.json; of the `end_tokens` the usual one is first.

    `chat_template` is Jinja or empty, `bos` and `eos` are the texts of its special tokens or empty.
    """

    fingerprint: str
    tokenizer: str
    end_tokens: list[int]
    chat_template: str
    bos: str
    eos: str


class Relation(Enum):
    """What the token ids of one server are to another."""

    IDENTICAL = "identical"
    PADDED = "padded"
    """The same, but for ids at the end that stand for nothing: models round the number of their logits up."""
    DIFFERENT = "different"


def compare(ours: VocabularyInfo, theirs: VocabularyInfo) -> Relation:
    """Whether ids may travel as they are."""
    if ours.fingerprint != theirs.fingerprint:
        return Relation.DIFFERENT
    return Relation.IDENTICAL if ours.size == theirs.size else Relation.PADDED


def fingerprint(pieces: Iterable[bytes]) -> str:
    """128 bits of BLAKE2b, in hexadecimal, over what each id spells, special tokens as they are written.

    Ids at the end that spell nothing are padding, and do not count.
    """
    digest, empty = hashlib.blake2b(digest_size=16), 0
    for piece in pieces:
        if not piece:
            empty += 1
            continue
        digest.update(bytes(4) * empty + len(piece).to_bytes(4, "big") + piece)
        empty = 0
    return digest.hexdigest()


def pieces_of(tokenizer_json: str) -> list[bytes]:
    """What each id of a tokenizer.json spells, special tokens as they are written; nothing for ids it does not have.

    Raises VocabularyError for a kind of tokenizer whose tokens do not simply follow each other in the text.
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
    """Raises VocabularyError for what is no tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library has no error class of its own
        raise VocabularyError(f"the tokenizer cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class RemoteVocabulary:
    """The cloud's vocabulary in the hands of an edge: ids to bytes, text to ids."""

    def __init__(self, file: TokenizerFile) -> None:
        self.end_tokens = file.end_tokens
        self._pieces = pieces_of(file.tokenizer)
        self._answers, self._prompts = load(file.tokenizer), load(file.tokenizer)
        self._answers.encode_special_tokens = True  # a special token that an answer only spells stays text
        added = self._answers.get_added_tokens_decoder().items()
        self._silent = {token for token, what in added if what.special} | set(file.end_tokens)
        self.byte_tokens = {piece: token for token, piece in enumerate(self._pieces) if len(piece) == 1}
        """The token of each byte that has one."""
        self._adds_space = adds_space(self._words, self.piece)

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token of an answer, maybe part of a character; none for special tokens and padding."""
        known = token_id not in self._silent and token_id < len(self._pieces)
        return self._pieces[token_id] if known else b""

    def prompt(self, text: str, add_special: bool) -> list[int]:
        """A prompt's ids; special tokens may be spelled out. `add_special`: begun as the model likes."""
        ids: list[int] = self._prompts.encode(text, add_special_tokens=add_special).ids
        return ids

    def tokens(self, text: str) -> list[tuple[int, int | None]]:
        """The ids of text in the middle of an answer, each with the number of the word that it belongs to.

        A word is what the tokenizer never looks beyond: more text changes the ids of the last one only.
        """
        return inside(self._words, text, self._adds_space)

    def _words(self, text: str) -> list[tuple[int, int | None]]:
        encoding = self._answers.encode(text, add_special_tokens=False)
        return list(zip(encoding.ids, encoding.word_ids, strict=True))


def settled(words: Sequence[int | None]) -> int:
    """How many of the tokens of these words no further text can change.

    All of one word, as in scripts that do not part them: all but the last token, which is then a guess.
    """
    last = next((at for at, word in enumerate(words) if word == words[-1]), 0)
    return last or max(len(words) - 1, 0)


def adds_space(encode: Callable[[str], Sequence[Any]], piece: Callable[[int], bytes]) -> bool:
    """Whether `encode` puts a space before what it is given, as SentencePiece does."""
    ids = [token[0] if isinstance(token, tuple) else token for token in encode("a")]
    return b"".join(map(piece, ids)) == b" a"


def inside(encode: Callable[[str], list[T]], text: str, adds_space: bool) -> list[T]:
    """`text` as `encode` reads it in the middle of a text, where it is to put no space before it."""
    if not adds_space or not text:
        return encode(text)
    if text.startswith(" ") and len(text) > 1:
        return encode(text[1:])
    for anchor in ANCHORS:
        before, both = encode(anchor), encode(anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return encode(text)


def _speller(tokenizer_json: str) -> Callable[[str], bytes]:
    """How this tokenizer writes bytes as tokens."""
    kinds = set(_kinds(msgspec.json.decode(tokenizer_json, type=_File).decoder))
    if "ByteLevel" in kinds:
        return lambda token: bytes(BYTES[letter] for letter in token) if BYTES.keys() >= set(token) else token.encode()
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentence_piece
    raise VocabularyError(f"a tokenizer with the decoder {'+'.join(sorted(kinds)) or 'none'} cannot be translated")


class _File(Struct):
    """The part of a tokenizer.json that says how tokens become text."""

    decoder: dict[str, Any] | None = None


def _kinds(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [decoder["type"], *(kind for part in decoder.get("decoders", []) for kind in _kinds(part))]


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it can be printed, else one from 256 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES = _byte_letters()
