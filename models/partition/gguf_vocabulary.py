"""Writes a checkpoint's tokenizer (byte-level BPE or SentencePiece) as a GGUF file's vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import msgspec
from gguf import TokenType
from gguf.vocab import SentencePieceVocab, SpecialVocab

from common.errors import ConfigError

_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"""
_WORDS += r"\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    ("Split " + _WORDS % "{1,3}", "ByteLevel"): "llama-bpe",
    ("Split " + _WORDS % "", "ByteLevel"): "qwen2",
    ("Digits", "ByteLevel words"): "smollm",
    ("ByteLevel words",): "gpt-2",
}
"""The rules by which a tokenizer.json splits text before the merges, and llama.cpp's names of them."""


def pre_tokenizer(tokenizer: Path) -> str:
    """llama.cpp's name of the rule by which this tokenizer.json splits text; raises ConfigError for an unknown rule."""
    step = _read(tokenizer)["pre_tokenizer"] or {}
    steps = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    name = PRE_TOKENIZERS.get(tuple(map(_described, steps)))
    if not name:
        raise ConfigError(
            f"{tokenizer}: its pre-tokenizer is not known; supported are {', '.join(PRE_TOKENIZERS.values())}"
        )
    return name


def check(tokenizer: Path, size: int) -> None:
    """Raises ConfigError if `tokenizer` cannot be the vocabulary of a model with `size` tokens."""
    add(gguf.GGUFWriter(None, "llama"), tokenizer, size)


def add(writer: gguf.GGUFWriter, tokenizer: Path, size: int) -> None:
    """Adds the vocabulary of `tokenizer`, padded to `size` tokens, its special tokens and its chat template."""
    byte_level = tokenizer.suffix == ".json" and not _read(tokenizer)["model"].get("byte_fallback")
    tokens, types, scores = _byte_level(tokenizer) if byte_level else _sentence_pieces(tokenizer)
    if len(tokens) > size:
        raise ConfigError(f"{tokenizer}: {len(tokens)} tokens do not fit a model of {size}")
    padding = range(len(tokens), size)
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer) if byte_level else "default")
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in padding)])
    writer.add_token_types([*types, *(TokenType.UNUSED for _ in padding)])
    if scores:
        writer.add_token_scores([*scores, *(-10000.0 for _ in padding)])
    special = SpecialVocab(tokenizer.parent, load_merges=byte_level, n_vocab=size)
    if byte_level:
        special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)


def _read(tokenizer: Path) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(tokenizer.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{tokenizer}: {error}") from error


def _described(step: Mapping[str, Any]) -> str:
    kind = str(step.get("type"))
    if kind == "Split":
        return f"Split {step['pattern'].get('Regex')}" if step["behavior"] == "Isolated" else "Split otherwise"
    if kind == "Digits":
        return "Digits" if step["individual_digits"] else "Digits together"
    if kind == "ByteLevel":
        return "ByteLevel" + " words" * bool(step.get("use_regex", True)) + " prefixed" * bool(step["add_prefix_space"])
    return kind


def _byte_level(tokenizer: Path) -> tuple[list[str], list[TokenType], list[float]]:
    found = _read(tokenizer)
    tokens: dict[int, str] = {token_id: token for token, token_id in found["model"]["vocab"].items()}
    added = {token["id"]: token for token in found["added_tokens"]}
    tokens |= {token_id: token["content"] for token_id, token in added.items()}
    last = max(tokens)
    kinds = {i: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for i, token in added.items()}
    types = [kinds.get(i, TokenType.NORMAL if i in tokens else TokenType.UNUSED) for i in range(last + 1)]
    return [tokens.get(i, f"[PAD{i}]") for i in range(last + 1)], types, []


def _sentence_pieces(tokenizer: Path) -> tuple[list[bytes], list[TokenType], list[float]]:
    try:
        rows = list(SentencePieceVocab(tokenizer.parent).all_tokens())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{tokenizer.parent}: its tokenizer is SentencePiece, but tokenizer.model is missing"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{tokenizer.parent}: {error}") from error
    tokens, scores, types = zip(*rows, strict=True)
    return list(tokens), list(types), list(scores)
