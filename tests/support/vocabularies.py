"""Small vocabularies of several kinds, trained in milliseconds, and text that is hard to tokenize."""

import json
from collections.abc import Collection, Sequence
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from common.decoding.draft_yield import EarlyStop
from common.http.traffic import Traffic
from common.protocol import vocabulary
from common.protocol.content.tokenizer_json import load, pieces_of
from common.protocol.prefix_hash import common_prefix
from common.protocol.vocabulary import RemoteVocabulary, TokenizerFile
from common.types import NEVER, Draft, FinishReason, Sampling, StopRule, Verdict

SAMPLE = (
    "The capital of France is Paris. Machine learning is when computers learn from 1234 examples of data!\n"
    "  It isn't magic: naïve café 東京は大きい都市です。 🙂🙃 1+2=3, x_y = f(a, b)\n\n\tend"
).split("|")
ODD = [
    "",
    " ",
    "The capital of France is Paris.",
    "  two  spaces\n\n\nlines\t\tand tabs \n",
    "12345 is 67 8 90, not 1234567890123",
    "it's they're 'quoted' isn't",
    "written out: <|end|> and <|im_end|>, <|user|>",
    "naïve café — 東京は大きい都市です。寿司",
    "👩‍👩‍👧‍👦 family 🙂🙃🙂 flags 🇫🇷🇩🇪",
    "e\u0301 combining, \u00a0nbsp, \u200bzero width, \ufeffbom",
    "supercalifragilisticexpialidocious" * 3,
    "def f(x):\n    return {'a': [1, 2]}  # comment\n",
]
END, TALK = "<|end|>", "<|user|>"


@cache
def tokenizer_json(kind: str) -> str:
    """`bytes`: byte-level as in GPT-2; `digits`: smaller, with single digits; `pieces`: SentencePiece."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alone = [pre_tokenizers.Digits(individual_digits=True), cut]
    if kind == "pieces":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(alone) if kind == "digits" else cut
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size={"bytes": 420, "digits": 330, "pieces": 200}[kind],
        special_tokens=[END, TALK],
        initial_alphabet=[] if kind == "pieces" else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE * 3, trainer)
    return _with_bytes(tokenizer.to_str()) if kind == "pieces" else str(tokenizer.to_str())


def _with_bytes(text: str) -> str:
    """Adds a token for each byte, for characters without a token of their own, as in Llama 2."""
    tree = json.loads(text)
    for byte in range(256):
        tree["model"]["vocab"][f"<0x{byte:02X}>"] = len(tree["model"]["vocab"])
    tree["model"]["byte_fallback"] = True
    tree["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return json.dumps(tree)


def file(kind: str) -> TokenizerFile:
    text = tokenizer_json(kind)
    mark = vocabulary.fingerprint(pieces_of(text))
    return TokenizerFile(fingerprint=mark, tokenizer=text, end_tokens=[0], chat_template="", bos="", eos=END)


class EdgeSide:
    """A vocabulary with the interface of the edge engine's."""

    def __init__(self, kind: str) -> None:
        self._vocabulary = RemoteVocabulary(file(kind))
        self._tokenizer = load(tokenizer_json(kind))
        self._tokenizer.encode_special_tokens = True
        self.byte_tokens = self._vocabulary.byte_tokens

    @property
    def end_tokens(self) -> Collection[int]:
        return {0}

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def piece(self, token_id: int, special: bool = False) -> bytes:
        return self._vocabulary.piece(token_id)


class TextDrafter:
    """An edge model that answers `text`: it continues it from the length of the answer so far."""

    def __init__(self, edge: EdgeSide, text: str, prompt_tokens: int, context: int = 100_000) -> None:
        self._edge = edge
        self._text = text.encode()
        self._prompt = prompt_tokens
        self._context = context
        self.asked: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.drawn = 0
        """Tokens of all drafts."""

    async def draft(self, token_ids: Sequence[int], limit: int, sampling: Sampling, *, stop: StopRule = NEVER) -> Draft:
        self.asked.append(list(token_ids))
        self.samplings.append(sampling)
        done = sum(len(self._edge.piece(token)) for token in token_ids[self._prompt :])
        ids = [*spelled(self._edge, self._text[done:]), 0][: min(limit, self._context - len(token_ids))]
        scores = [0.5 + 0.4 * (token % 7) / 7 for token in ids]
        early = EarlyStop(stop)
        ids = ids[: next((n for n, score in enumerate(scores, 1) if early.ends_with(score)), len(ids))]
        scores = scores[: len(ids)]
        self.drawn += len(ids)
        return Draft(ids, scores, scores, bool(ids) and ids[-1] == 0, 1.0)


def spelled(edge: EdgeSide, data: bytes) -> list[int]:
    """Tokens for `data`, which may begin inside a character."""
    begun = next((at for at, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
    rest = vocabulary.inside(
        lambda text: edge.tokenize(text, False),
        data[begun:].decode(),
        vocabulary.adds_space(lambda text: edge.tokenize(text, False), edge.piece),
    )
    return [edge.byte_tokens[bytes([byte])] for byte in data[:begun]] + rest


class Truth:
    """A cloud that answers `ids`, whatever the drafts."""

    def __init__(self, ids: Sequence[int], prompt_tokens: int) -> None:
        self.traffic = Traffic()
        self._ids = list(ids)
        self._prompt = prompt_tokens

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        rest = self._ids[len(token_ids) - self._prompt :]
        accepted = common_prefix(list(draft), rest)
        drawn = rest[: accepted + max_tokens]
        return Verdict(drawn, accepted, FinishReason.STOP if len(drawn) == len(rest) else None, 0.0)
