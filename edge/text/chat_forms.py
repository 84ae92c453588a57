"""Whether edge and cloud write a conversation the same way, judged by one short message in the tokens of both."""

from collections.abc import Sequence

from common.protocol.openai import Message
from common.protocol.vocabulary import GREETING

CONVERSATION = [Message(role="user", content=GREETING)]
"""Both sides render it with their own chat template."""


def mismatch(ours: Sequence[int] | None, theirs: Sequence[int] | None, one_vocabulary: bool) -> str:
    """What does not fit, in one line; empty if all does, or if it is not known.

    `ours`, `theirs`: the ids of CONVERSATION by each side's own template; empty: it has none; None: not known. Only
    with one vocabulary do both read the same prompt, so only then must the templates be alike.
    """
    if ours is None or theirs is None or list(ours) == list(theirs):
        return ""
    if not theirs:
        return "the cloud's model has no chat template (a base model?): it reads chats as the edge's model writes them"
    if not ours:
        return "the edge's model has no chat template (a base model?), but the cloud's has: chats are refused here"
    if not one_vocabulary:
        return ""
    return (
        "the chat templates of edge and cloud differ: the cloud reads chats as the edge's model writes them, "
        "and may answer otherwise than when it is asked directly"
    )
