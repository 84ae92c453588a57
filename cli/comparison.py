"""Answers one question in several modes at once and shows them side by side."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.ask import ShownAnswer, read_answer
from common.enums import BY_CLOUD
from common.errors import FrameworkError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest

REFERENCE = "cloud"
"""The mode whose answer the others are compared with."""
WORDS = re.compile(r"\w+|[^\w\s]")


async def compare(client: EdgeCloudHTTPClient, requests: Mapping[str, ChatRequest], console: Console) -> None:
    """Prints a table with a column for each mode; words that the reference does not have are underlined."""
    answers = {name: ShownAnswer() for name in requests}
    read = (read_answer(client, request, answers[name], None) for name, request in requests.items())
    outcomes = dict(zip(requests, await asyncio.gather(*read, return_exceptions=True), strict=True))
    table = Table(box=None, padding=(0, 3, 1, 0))
    for name in requests:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(_marked(answers[name], answers.get(REFERENCE)) for name in requests))
    table.add_row(*(_figures(answers[name], outcomes[name]) for name in requests))
    console.print(table)


def _marked(answer: ShownAnswer, reference: ShownAnswer | None) -> Text:
    text = Text("").join(answer.parts)
    usable = reference and reference.report and not reference.report.degraded
    for start, end in differing(answer.text, reference.text) if reference and usable else ():
        text.stylize("underline", start, end)
    return text


def differing(text: str, reference: str) -> Sequence[tuple[int, int]]:
    """Where the words of `text` lie that are not in `reference`, in order: begin and end, in characters."""
    words = list(WORDS.finditer(text))
    matcher = SequenceMatcher(None, [word[0] for word in words], WORDS.findall(reference), autojunk=False)
    kept = {block.a + n for block in matcher.get_matching_blocks() for n in range(block.size)}
    return [word.span() for at, word in enumerate(words) if at not in kept]


def _figures(answer: ShownAnswer, outcome: object) -> Text:
    report = answer.report
    if report is None:
        if isinstance(outcome, FrameworkError):
            return Text(f"error: {outcome.message}", style="red")
        raise outcome if isinstance(outcome, BaseException) else AssertionError("an answer without a report")
    tokens, cloud = sum(report.tokens.values()), sum(report.tokens[source] for source in BY_CLOUD)
    lines = [
        f"{answer.total_ms / 1000:.2f} s",
        f"{cloud} of {tokens} tokens by the cloud",
        f"{report.bytes_up} bytes up, {report.bytes_down} down",
    ]
    return Text("\n".join(lines + ([f"degraded: {report.degraded}"] if report.degraded else [])), style="dim")
