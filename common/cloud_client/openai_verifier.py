"""The pipeline's cloud where it is a server with OpenAI's API: it verifies nothing, and goes on with answers."""

import codecs
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from common.cloud_client.openai_client import OpenAIClient
from common.cloud_client.openai_servers import EXTRAS, VLLM, ServerInfo
from common.cloud_client.openai_stream import GeneratedStream, GenerationCall
from common.cloud_client.pool import CallOutcome, Cloud, CloudPool, outcome_of
from common.enums import ContinuationForm
from common.errors import EndpointError, RequestError
from common.http.request_context import current_tenant
from common.http.retry import ConnectionBroken
from common.http.traffic import Traffic
from common.types import Sampling, Verdict

STANDARD = "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "ignore_eos"
"""Fields of `Sampling` that are sent under their own names, unless they are neutral."""


@dataclass(frozen=True)
class TextPrompt:
    """A prompt as such a server reads it: `text` with its special tokens, and the turns if it is a conversation.

    `bos`: the text of the token that begins prompts. `encode`, `spell`: between the text in the middle of an answer and
    the ids of its tokens. `tokens`: of the prompt, by the edge's count.
    """

    text: str
    turns: Sequence[Mapping[str, Any]] | None
    bos: str
    tokens: int
    encode: Callable[[str], list[int]]
    spell: Callable[[int], bytes]

    def request(self, info: ServerInfo, answer_ids: Sequence[int], fields: dict[str, Any]) -> GenerationCall:
        """The call that continues the answer; raises EndpointError if the server cannot."""
        answer, pending = _whole_characters(b"".join(map(self.spell, answer_ids)))
        fields = fields | {"model": info.model, "stream": True, "stream_options": {"include_usage": True}}
        if self.turns is None:
            return GenerationCall("/completions", fields | {"prompt": self.text + answer}, pending)
        if info.continuation is ContinuationForm.TEXT:
            text = self.text.removeprefix(self.bos) if info.adds_bos else self.text
            return GenerationCall(
                "/completions", fields | {"prompt": text + answer, "add_special_tokens": False}, pending
            )
        turns = list(self.turns)
        if answer_ids:
            if info.continuation is ContinuationForm.NONE:
                raise EndpointError("this cloud cannot go on with an answer that has begun")
            turns.append({"role": "assistant", "content": answer})
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return GenerationCall("/chat/completions", fields | {"messages": turns}, pending)


class OpenAIVerifier:
    """One answer's clouds of kind `openai`: they can only `stream`. One that has failed is not asked again."""

    def __init__(
        self, clouds: CloudPool, info: Callable[[Cloud], Awaitable[ServerInfo]], prompt: TextPrompt, context: int
    ) -> None:
        """`context`: the length of the cloud's context; an answer that may fill it is sent without a limit."""
        self._clouds = clouds
        self._info = info
        self._prompt = prompt
        self._context = context
        self._tenant = current_tenant.get()
        self._failed: dict[Cloud, EndpointError] = {}
        self._asked = 0
        self.traffic = Traffic()

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        raise EndpointError("this cloud does not verify drafts")

    @asynccontextmanager
    async def stream(
        self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> AsyncIterator[GeneratedStream]:
        """See `common.decoding.interfaces.Verifier`."""
        while True:
            cloud = self._pick(token_ids)
            try:
                info = await self._info(cloud)  # which counts as a call of its own
            except EndpointError as error:
                if not self._may_repeat(error, None):
                    self._failed[cloud] = error
                continue
            self._clouds.begin_call(cloud)
            outcome, failure, stream = CallOutcome.CANCELLED, None, None
            try:
                stream = self._stream(cloud, info, token_ids, max_tokens, sampling)
                async with stream:
                    yield stream
                return
            except (EndpointError, RequestError) as error:
                failure = stream.failure if stream else error
                if failure is not None:
                    outcome = outcome_of(failure)
                if isinstance(failure, EndpointError) and not self._may_repeat(failure, stream):
                    self._failed[cloud] = failure
                if isinstance(error, RequestError) or (stream and stream.opened):
                    raise
            finally:
                self._clouds.end_call(cloud, CallOutcome.OK if stream and stream.end else outcome, failure)

    def _may_repeat(self, failure: EndpointError, stream: GeneratedStream | None) -> bool:
        """Whether to ask the same cloud again, once: it may have closed the connection while that was idle."""
        return isinstance(failure, ConnectionBroken) and not (stream and stream.opened) and self._asked == 1

    def _pick(self, token_ids: Sequence[int]) -> Cloud:
        """A cloud that has not failed; raises the last failure where there is none."""
        try:
            cloud = self._clouds.pick(token_ids, excluding=self._failed)
        except EndpointError:
            if self._failed:
                raise list(self._failed.values())[-1] from None
            raise
        self._clouds.failovers += bool(self._failed)
        self._asked += 1
        return cloud

    def _stream(
        self, cloud: Cloud, info: ServerInfo, token_ids: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> GeneratedStream:
        prompt = self._prompt
        fields = self._sampling_fields(info, sampling)
        if len(token_ids) + max_tokens < self._context:
            fields["max_tokens"] = max_tokens
        request = prompt.request(info, token_ids[prompt.tokens :], fields)
        assert isinstance(cloud.client, OpenAIClient)
        return GeneratedStream(
            cloud.client, request, len(token_ids), max_tokens, prompt.encode, prompt.spell, self.traffic
        )

    def _sampling_fields(self, info: ServerInfo, sampling: Sampling) -> dict[str, Any]:
        """What differs from the neutral values; the temperature always."""
        neutral = Sampling(temperature=-1.0)
        names = dict(zip(STANDARD, STANDARD, strict=True)) | EXTRAS.get(info.owner, EXTRAS[VLLM])
        fields = {
            theirs: getattr(sampling, ours)
            for ours, theirs in names.items()
            if getattr(sampling, ours) != getattr(neutral, ours)
        }
        if self._tenant and info.owner == VLLM:
            fields["cache_salt"] = self._tenant
        return fields


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text of `data`, and the bytes at its end that begin a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return text, decoder.getstate()[0]
