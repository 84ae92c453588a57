"""Writes the prompt for the text that belongs between two others, in the order in which such models were trained.

Files beside it come first: the repository-level format of Qwen2.5-Coder's report (arXiv:2409.12186), as llama-server.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from common.errors import ContextLengthError
from common.protocol.tokenization import LONGEST_TOKEN

WINDOW = 2048
"""Tokens of prefix and suffix together; what is further away goes to the files beside it, if there are any."""
MIN_ROOM = 16
"""Tokens below which there is no point in cutting a text to fit."""
REPOSITORY = "myproject\n"
FILE = "filename\n"
BETWEEN = "\n\n--- snippet ---\n\n"
"""Before each further text, for models without a token for files."""

Tokenize = Callable[[str], list[int]]


class FillInTokens(NamedTuple):
    """The special tokens of a model that fills in (FIM); None: it has none of that kind."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None
    begin: int | None = None
    """What begins every prompt."""


class FillIn(NamedTuple):
    """What is asked for: the text after `prefix` and `begun`, before `suffix`. `files`: names and texts beside it."""

    prefix: str
    suffix: str
    begun: str = ""
    files: Sequence[tuple[str, str]] = ()
    with_files: bool = True
    """Whether the prompt is one of a repository, even if no file is given."""


def prompt(wanted: FillIn, tokens: FillInTokens, tokenize: Tokenize, room: int) -> list[int]:
    """The prompt's token ids, at most `room`: prefix and suffix are cut where they are far from the gap.

    The files get what the window leaves, whatever of it is used, so that a prompt begins like the one before it and
    the KV of its files is found again. Raises ContextLengthError if there is no room.
    """
    begun, characters = tokenize(wanted.begun), max(0, room) * LONGEST_TOKEN
    special = 3 + (tokens.begin is not None)
    beside = _files(wanted, tokens, tokenize, characters) if wanted.with_files else []
    window = min(WINDOW, room * 3 // 4 if wanted.files else room - len(beside)) - special
    if window - len(begun) < MIN_ROOM:
        raise ContextLengthError(f"no room for a prefix and a suffix in {room} tokens", param="prompt")
    before, after = tokenize(wanted.prefix[-characters:]), tokenize(wanted.suffix[:characters])
    for_suffix = max(0, window // 4 - len(begun))
    before, after = before[-(window - for_suffix - len(begun)) :], after[:for_suffix]
    beside = beside[max(0, len(beside) - (room - window - special)) :]
    begin = [] if tokens.begin is None else [tokens.begin]
    return [*beside, *begin, tokens.prefix, *before, *begun, tokens.suffix, *after, tokens.middle]


def _files(wanted: FillIn, tokens: FillInTokens, tokenize: Tokenize, characters: int) -> list[int]:
    ids = [] if tokens.repository is None else [tokens.repository, *tokenize(REPOSITORY)]
    for name, text in wanted.files:
        ids += tokenize(BETWEEN) if tokens.file is None else [tokens.file, *tokenize(f"{name}\n")]
        ids += tokenize(text[-characters:])
    return ids if tokens.file is None else [*ids, tokens.file, *tokenize(FILE)]
