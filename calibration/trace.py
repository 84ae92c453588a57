"""Traces the edge along the cloud's answers over HTTP: its confidence and agreement at every token."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.cloud_client.verifier import CloudVerifier, EdgeDrafter
from common.decoding.interfaces import Drafter
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import Message
from common.protocol.tokenization import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
from common.types import GREEDY

STRIDE = 16
"""Tokens of one draft: more are wasted at a disagreement, fewer need more calls."""


@dataclass(frozen=True)
class TracedAnswer:
    """The cloud's greedy answer to a prompt as text, and the edge's predictions along it (see `simulation.Trace`)."""

    answer: str
    confidences: list[float]
    agrees: list[bool]


async def walk(client: EdgeCloudHTTPClient, prompt: str, max_tokens: int) -> TracedAnswer:
    """Gets the cloud's answer to `prompt`, one user turn in the edge's chat template, and traces the edge along it.

    Raises EndpointError if a server cannot be used, RequestError for a prompt that does not fit its context.
    """
    question = TokenizeRequest(messages=[Message(role="user", content=prompt)])
    prompt_ids = (await client.edge.post("/tokenize", question, TokenizeReply)).tokens
    answer = (await CloudVerifier(client.clouds).verify(prompt_ids, [], GREEDY, max_tokens)).token_ids
    text = (await client.edge.post("/detokenize", DetokenizeRequest(tokens=answer), DetokenizeReply)).prompt
    return TracedAnswer(text, *await along(EdgeDrafter(client.edge), prompt_ids, answer))


async def along(drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[float], list[bool]]:
    """The edge's confidence after each prefix of `answer`, and whether its own next token is the answer's.

    A draft covers several positions while it agrees; after the first token that differs, the next draft begins behind
    the answer's token. Once the edge's context is full, its confidence counts as 0.
    """
    confidences: list[float] = []
    agrees: list[bool] = []
    while len(agrees) < len(answer):
        at = len(agrees)
        draft = await drafter.draft([*prompt, *answer[:at]], min(STRIDE, len(answer) - at), GREEDY)
        if not draft.token_ids:
            missing = len(answer) - at
            return confidences + missing * [0.0], agrees + missing * [False]
        for position, (token, confidence) in enumerate(zip(draft.token_ids, draft.confidences, strict=True), at):
            confidences.append(confidence)
            agrees.append(token == answer[position])
            if not agrees[-1]:
                break
    return confidences, agrees
