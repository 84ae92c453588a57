"""Asks an edge server one question and prints the answer and its summary table."""

import time
from dataclasses import dataclass

from rich.console import Console

from cli import terminal
from common.errors import EndpointError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration


@dataclass
class QuestionSettings:
    """The settings of all questions of one program; None: as the edge's config says."""

    max_tokens: int = 128
    temperature: float = 0.8
    use_draft_verify: bool | None = None
    use_confidence_check: bool | None = None

    def request(self, prompt: str) -> ChatRequest:
        if not prompt.strip():
            raise RequestError("the prompt is empty")
        return ChatRequest(
            messages=[Message(role="user", content=prompt)],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            use_draft_verify=self.use_draft_verify,
            use_confidence_check=self.use_confidence_check,
        )


async def ask(
    client: EdgeCloudHTTPClient, prompt: str, settings: QuestionSettings, console: Console, stream: bool = True
) -> tuple[Collaboration, float]:
    """Prints the answer (as it comes, or at its end) and its summary; returns the report and the total milliseconds."""
    start = time.perf_counter()
    parts = []
    report: Collaboration | None = None
    async for chunk in client.stream(settings.request(prompt)):
        for choice in chunk.choices:
            text = terminal.styled(choice.delta.content, choice.provenance)
            parts.append(text)
            if stream:
                console.print(text, end="")
        report = chunk.collaboration or report
    total_ms = (time.perf_counter() - start) * 1000
    if report is None:
        raise EndpointError("the edge server ended its answer without a report; its log says why")
    if not stream:
        console.print(*parts, sep="", end="")
    console.print("\n")
    console.print(terminal.summary(report, total_ms))
    return report, total_ms
