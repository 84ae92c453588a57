"""Vocabularies: which ones agree, and that text survives tokenization."""

import json

import pytest

from common.errors import VocabularyError
from common.protocol import vocabulary as vocab
from common.protocol.vocabulary import Relation, RemoteVocabulary, VocabularyInfo, compare, fingerprint, settled
from tests.support.vocabularies import END, ODD, file, tokenizer_json

KINDS = ["bytes", "digits", "pieces"]


def test_vocabularies_are_identical_padded_or_different() -> None:
    ours = VocabularyInfo("a", 151936)
    assert compare(ours, VocabularyInfo("a", 151936)) is Relation.IDENTICAL
    assert compare(ours, VocabularyInfo("a", 152064)) is Relation.PADDED
    assert compare(ours, VocabularyInfo("b", 151936)) is Relation.DIFFERENT


def test_a_fingerprint_sees_every_id_but_padding() -> None:
    pieces = [b"a", b"", b"bc", b"d"]
    assert fingerprint(pieces) == fingerprint([*pieces, b"", b""])
    at = len(pieces)  # ids that a tokenizer does not have, as llama.cpp's converter names them
    assert fingerprint(pieces) == fingerprint([*pieces, b"[PAD%d]" % at, b"[PAD%d]" % (at + 1)])
    assert fingerprint(pieces) != fingerprint([*pieces, b"[PAD%d]" % (at + 5)])
    others = [[b"a", b"bc", b"d"], [b"a", b"", b"b", b"cd"], [b"a", b"", b"d", b"bc"], [b"", b"a", b"bc", b"d"], []]
    assert fingerprint(pieces) not in map(fingerprint, others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ODD)
def test_text_becomes_tokens_that_spell_it(kind: str, text: str) -> None:
    vocabulary = RemoteVocabulary(file(kind))
    tokens = [token for token, _ in vocabulary.tokens(text)]
    assert b"".join(map(vocabulary.piece, tokens)).decode() == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_from_prompts_and_never_from_answers(kind: str) -> None:
    vocabulary = RemoteVocabulary(file(kind))
    assert vocabulary.prompt(f"a{END}", add_special=True)[-1] == 0
    assert 0 not in [token for token, _ in vocabulary.tokens(f"a{END}b")]
    assert vocabulary.piece(0) == vocabulary.piece(10_000) == b""


@pytest.mark.parametrize("kind", ["bytes", "digits"])
@pytest.mark.parametrize("text", ODD)
def test_settled_tokens_stay_whatever_follows(kind: str, text: str) -> None:
    vocabulary = RemoteVocabulary(file(kind))
    for cut in range(1, len(text)):
        tokens = vocabulary.tokens(text[:cut])
        words = [word for _, word in tokens]
        if len(set(words)) > 1:
            assert vocabulary.tokens(text)[: settled(words)] == tokens[: settled(words)]


def test_a_tokenizer_that_cannot_be_translated_is_refused_in_one_line() -> None:
    tree = json.loads(tokenizer_json("bytes"))
    tree["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(VocabularyError, match="WordPiece"):
        vocab.pieces_of(json.dumps(tree))
    with pytest.raises(VocabularyError, match="cannot be read"):
        vocab.pieces_of("{}")
