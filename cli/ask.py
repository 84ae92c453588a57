"""Asks an edge server: prints the answer as it comes, coloured by provenance, and the table of how it came about."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from cli import terminal
from common.errors import EndpointError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration, Mode


@dataclass
class QuestionSettings:
    """The settings of all questions of one program; None: as the edge's config says."""

    max_tokens: int = 128
    temperature: float = 0.8
    use_draft_verify: bool | None = None
    use_confidence_check: bool | None = None
    mode: Mode = Mode.COLLABORATIVE
    confidence_threshold: float | None = None

    def request(self, prompt: str, earlier: Sequence[Message] = ()) -> ChatRequest:
        """`earlier`: the messages before this one."""
        if not prompt.strip():
            raise RequestError("the prompt is empty")
        return ChatRequest(
            messages=[*earlier, Message(role="user", content=prompt)],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            mode=self.mode,
            use_draft_verify=self.use_draft_verify,
            use_confidence_check=self.use_confidence_check,
            confidence_threshold=self.confidence_threshold,
        )


@dataclass
class ShownAnswer:
    """An answer as it arrives; `report` and `total_ms` are there at its end."""

    parts: list[Text] = field(default_factory=list)
    report: Collaboration | None = None
    total_ms: float = 0.0

    @property
    def text(self) -> str:
        return "".join(part.plain for part in self.parts)


async def read_answer(
    client: EdgeCloudHTTPClient, request: ChatRequest, answer: ShownAnswer, console: Console | None
) -> Collaboration:
    """Fills `answer`, prints it on the `console` if there is one, and returns its report.

    Raises EndpointError if the edge cannot be used, or ends without a report.
    """
    start = time.perf_counter()
    async for chunk in client.stream(request):
        for choice in chunk.choices:
            text = terminal.styled(choice.delta.content, choice.provenance)
            answer.parts.append(text)
            if console:
                console.print(text, end="", soft_wrap=True)
        answer.report = chunk.collaboration or answer.report
    answer.total_ms = (time.perf_counter() - start) * 1000
    if answer.report is None:
        raise EndpointError("the edge server ended its answer without a report; its log says why")
    return answer.report


async def ask(
    client: EdgeCloudHTTPClient, prompt: str, settings: QuestionSettings, console: Console, stream: bool = True
) -> None:
    """Prints the answer (as it comes, or at its end) and its summary."""
    answer = ShownAnswer()
    report = await read_answer(client, settings.request(prompt), answer, console if stream else None)
    if not stream:
        console.print(*answer.parts, sep="", end="", soft_wrap=True)
    console.print("\n")
    console.print(terminal.summary(report, answer.total_ms))
