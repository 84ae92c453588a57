"""A prompt as the beginning of its answer (`echo`), with the log probability of each of its tokens if asked for."""

from typing import NamedTuple

from common.cloud_client.prompt_scores import prompt_scores
from common.decoding.answer import Answer
from common.errors import EndpointError
from common.types import TokenLogprob
from edge.api.context import ServerContext
from edge.api.rendering.logprobs import ScoredToken
from edge.api.resolve import ResolvedAnswer, ResolvedRequest
from edge.engine.sequence import EdgeSequence
from edge.privacy.restoring import restored
from edge.text.detokenizer import TextStream


class PromptAsText(NamedTuple):
    """`characters`: of the text as the model reads it; `tokens`: with their scores, if these were asked for."""

    text: str
    characters: int
    tokens: list[ScoredToken]


async def echoed_prompt(
    resolved: ResolvedAnswer,
    request: ResolvedRequest,
    context: ServerContext,
    answer: Answer,
    sequence: EdgeSequence | None,
) -> PromptAsText:
    """Of an `answer` that has just started; `sequence`: the one that is leased for all of it, if any."""
    shared, bos = resolved.prompt, request.engine.bos.encode()

    def spell(token: int) -> bytes:
        """Special tokens as the client wrote them; the tokenizer added the one that begins the text."""
        data = shared.piece(token, special=True)
        return b"" if data == bos else data

    text, prompt = TextStream(spell), list(resolved.decoding.prompt)
    begins, parts = [], []
    for token in prompt:
        begins.append(text.decoded)
        parts.append(text.push([token]))
    parts.append(text.flush())
    whole, top = "".join(parts), request.top_logprobs
    if top is None:
        return PromptAsText(restored(whole, request.secrets), len(whole), [])
    if sequence is not None:
        scores = await sequence.score(prompt, max(1, top))
    else:
        scores = await _scores(resolved, request, context, answer, top)
    tokens = [ScoredToken(*token) for token in zip(prompt, begins, scores, strict=True)]
    return PromptAsText(whole, len(whole), tokens)


async def _scores(
    resolved: ResolvedAnswer, request: ResolvedRequest, context: ServerContext, answer: Answer, top: int
) -> list[TokenLogprob | None]:
    """Under the cloud's model, which answers; the edge goes on alone if that cannot be used."""
    shared, prompt = resolved.prompt, list(resolved.decoding.prompt)
    try:
        if shared.unknown_because:
            raise EndpointError(shared.unknown_because)
        return await prompt_scores(context.clouds, prompt, top)
    except EndpointError as error:
        if shared.edge_ids != prompt:
            raise  # the edge has other tokens
        answer.continue_on_edge(error)
    async with context.engine.sequence(shared.edge_ids, request.reuse_kv) as lent:
        return await lent.score(prompt, max(1, top))
