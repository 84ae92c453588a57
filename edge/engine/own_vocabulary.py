"""The edge's own vocabulary as clouds compare it, and text in the middle of an answer as its ids."""

import asyncio
from functools import partial

from common.protocol.vocabulary import VocabularyInfo, adds_space, fingerprint, inside
from edge.engine.text_model import TextModel

PIECES = 4096
"""Tokens that are converted to bytes without a pause: some milliseconds."""


class OwnVocabulary:
    """Of one model on the edge."""

    def __init__(self, engine: TextModel) -> None:
        self._engine = engine
        self._info: VocabularyInfo | None = None
        self._computing = asyncio.Lock()

    async def info(self) -> VocabularyInfo:
        """Fingerprint and size; computing them takes about a second for a large one."""
        async with self._computing:
            if self._info is None:
                size, pieces = self._engine.vocab_size, list[bytes]()
                while len(pieces) < size:
                    part = range(len(pieces), min(size, len(pieces) + PIECES))
                    pieces += [self._engine.piece(token, special=True) for token in part]
                    await asyncio.sleep(0)  # lets other tasks run; a thread might outlive the engine
                self._info = VocabularyInfo(fingerprint(pieces), size)
            return self._info

    def encode(self, text: str) -> list[int]:
        """The ids of text in the middle of an answer."""
        encode = partial(self._engine.tokenize, add_special=False)
        return inside(encode, text, adds_space(encode, self._engine.piece))

    def encode_marks(self, text: str) -> list[int]:
        """The ids of text that the template writes, such as the end of a thought: marks are tokens of their own."""
        return self._engine.tokenize(text, add_special=False, parse_special=True)
