"""Describes vocabularies: the bytes of each token id, whether two servers' ids agree, and text as tokens."""

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, TypeVar, cast

from msgspec import Struct

from common.protocol.content.tokenizer_json import load, pieces_of

T = TypeVar("T")
GREETING = "Hello"
"""A user's message that both servers render, to compare their chat templates."""
PROBES = (
    "The naïve café isn't far: it's 12,345.67 km!",
    "e\u0301 A\u030a \u1e9b\u0323 \u212b ﬁ ½ Ⅷ",
    "  two  spaces\n\n \t x\r\nnew   ",
    "東京は大きい都市です。서울 Привет मुझे ไทย שלום مرحبا",
    "def f(x):\n    return {'a': [x_y, 1e-5]}  # 👩‍👩‍👧 🙂\u00a0\u200b\ufeff",
    "I'LL WE'VE don’t ..!? --- 0000000000 A\u0300bC camelCase",
)
"""Texts that tokenizers with one vocabulary may cut in different ways: their normalizers and pre-tokenizers differ."""
ANCHORS = ("\n", "a", ".")
"""Characters to put before a text; with one of them the text does not merge."""


class VocabularyInfo(Struct, frozen=True):
    """Reply to GET /tokenizer, sent by both servers."""

    fingerprint: str
    """See `fingerprint` below."""
    size: int
    """The number of ids, padding included."""
    greeting: list[int] | None = None
    """The cloud's ids of the prompt for GREETING, by its chat template; empty: it has none; None: not known."""
    context_length: int | None = None
    """Tokens of the cloud's context; None: not told."""
    model: str = ""
    """The name of the cloud's model; empty: not told."""
    reading: str = ""
    """How the cloud's tokenizer reads PROBES; see `reading_of`. Empty: not told."""
    normalizer: str = ""
    """The Unicode form that the cloud's tokenizer first brings a text into, such as NFC; empty: none."""


class TokenizerFile(Struct, kw_only=True):
    """Reply to GET /tokenizer/file, sent by the cloud."""

    fingerprint: str
    tokenizer: str
    """The content of a tokenizer.json."""
    end_tokens: list[int]
    """The usual one is first."""
    chat_template: str
    """Jinja, or empty."""
    bos: str
    """Text of the chat template's `bos_token`, or empty."""
    eos: str
    """Text of the chat template's `eos_token`, or empty."""


class Relation(Enum):
    """How the token ids of two servers relate."""

    IDENTICAL = "identical"
    PADDED = "padded"
    """The same except for unused ids at the end: models round up the number of their logits."""
    DIFFERENT = "different"


def compare(ours: VocabularyInfo, theirs: VocabularyInfo) -> Relation:
    """How the ids of two servers relate; unless DIFFERENT they can be exchanged as they are."""
    if ours.fingerprint != theirs.fingerprint:
        return Relation.DIFFERENT
    return Relation.IDENTICAL if ours.size == theirs.size else Relation.PADDED


def fingerprint(pieces: Iterable[bytes]) -> str:
    """128 bits of BLAKE2b, in hexadecimal, over the bytes of each id; special tokens count as their text.

    Padding at the end does not count: ids without bytes, or spelled as llama.cpp's converter names them, which a
    checkpoint that was made from a GGUF file may have in its tokenizer.
    """
    digest, empty = hashlib.blake2b(digest_size=16), 0
    for token_id, piece in enumerate(pieces):
        if piece in (b"", b"[PAD%d]" % token_id):
            empty += 1
            continue
        digest.update(bytes(4) * empty + len(piece).to_bytes(4, "big") + piece)
        empty = 0
    return digest.hexdigest()


def reading_of(encode: Callable[[str], Sequence[int]], normalizer: str = "") -> str:
    """128 bits of BLAKE2b, in hexadecimal, over the ids that `encode` gives PROBES, brought into a Unicode form."""
    digest = hashlib.blake2b(digest_size=16)
    for probe in PROBES:
        digest.update(repr(list(encode(normalized(probe, normalizer)))).encode())
    return digest.hexdigest()


def normalized(text: str, form: str) -> str:
    """`text` in a Unicode form of FORMS; as it is, if that is empty."""
    return unicodedata.normalize(cast(Any, form), text) if form else text


class RemoteVocabulary:
    """The cloud's vocabulary as the edge uses it: ids to bytes, text to ids."""

    def __init__(self, file: TokenizerFile) -> None:
        self.end_tokens = file.end_tokens
        self._pieces = pieces_of(file.tokenizer)
        self._answers, self._prompts = load(file.tokenizer), load(file.tokenizer)
        self._answers.encode_special_tokens = True  # a special token spelled out in an answer stays text
        added = self._answers.get_added_tokens_decoder().items()
        self._invisible = {token for token, entry in added if entry.special} | set(file.end_tokens)
        self.byte_tokens = {piece: token for token, piece in enumerate(self._pieces) if len(piece) == 1}
        """The token of each single byte that has one."""
        self._adds_space = adds_space(self._words, self.piece)

    def piece(self, token_id: int, special: bool = False) -> bytes:
        """The bytes of one token of an answer, possibly part of a character; empty for padding.

        Special tokens are empty too, unless `special`.
        """
        visible = token_id < len(self._pieces) and (special or token_id not in self._invisible)
        return self._pieces[token_id] if visible else b""

    def prompt(self, text: str, add_special: bool) -> list[int]:
        """A prompt's ids; special tokens may be spelled out. `add_special`: adds the model's own, such as BOS."""
        ids: list[int] = self._prompts.encode(text, add_special_tokens=add_special).ids
        return ids

    def tokens(self, text: str) -> list[tuple[int, int | None]]:
        """The ids of text in the middle of an answer, each with the index of its word.

        The tokenizer never merges across words, so more text changes the ids of the last word only.
        """
        return inside(self._words, text, self._adds_space)

    def _words(self, text: str) -> list[tuple[int, int | None]]:
        encoding = self._answers.encode(text, add_special_tokens=False)
        return list(zip(encoding.ids, encoding.word_ids, strict=True))


def settled(words: Sequence[int | None]) -> int:
    """How many of the tokens, given the word index of each, no further text can change: those before the last word.

    If all belong to one word, as in scripts without spaces, it is all but the last token, which is a guess.
    """
    start = next((at for at, word in enumerate(words) if word == words[-1]), 0)
    return start or max(len(words) - 1, 0)


def adds_space(encode: Callable[[str], Sequence[Any]], piece: Callable[[int], bytes]) -> bool:
    """Whether `encode` puts a space before its text, as SentencePiece does."""
    ids = [token[0] if isinstance(token, tuple) else token for token in encode("a")]
    return b"".join(map(piece, ids)) == b" a"


def inside(encode: Callable[[str], list[T]], text: str, adds_space: bool) -> list[T]:
    """The tokens of `text` in the middle of a text, where `encode` must not put a space before it."""
    if not adds_space or not text:
        return encode(text)
    if text.startswith(" ") and len(text) > 1:
        return encode(text[1:])
    for anchor in ANCHORS:
        before, both = encode(anchor), encode(anchor + text)
        if both[: len(before)] == before:
            return both[len(before) :]
    return encode(text)
