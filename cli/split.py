"""Asks a split model one question in a terminal: the answer, coloured by exit, then a summary table."""

import time
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.terminal import percent
from common.config_schema import Config
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import ConfigError, RequestError
from common.types import Collaboration, Provenance, Sampling
from edge.split.answer import SplitAnswer
from edge.split.engine import EdgeInferenceEngine
from edge.text.detokenizer import TextStream

EXIT_STYLES = "green", "cyan", "blue", "yellow"
"""Colours of the exits' tokens, in order of the exits; used again from the start if there are more exits."""
CLOUD_STYLE = "magenta"


@dataclass(frozen=True)
class SplitQuestion:
    """A prompt and how it is answered. `threshold`: of all exits, instead of the config's; above 1 none is taken."""

    prompt: str
    sampling: Sampling
    max_tokens: int = 128
    standalone: bool = False
    threshold: float | None = None
    stream: bool = False
    """Prints the answer while it is generated."""

    def check(self) -> None:
        """Raises RequestError or ConfigError for a wrong value."""
        if not self.prompt.strip():
            raise RequestError("the prompt is empty")
        if self.threshold is not None and not self.threshold >= 0:
            raise ConfigError(f"--threshold must be 0 or more, not {self.threshold:g}")
        if self.max_tokens < 1:
            raise ConfigError(f"--max-tokens must be 1 or more, not {self.max_tokens}")
        if not 0 <= self.sampling.temperature <= 2:
            raise ConfigError(f"--temperature must be from 0 to 2, not {self.sampling.temperature:g}")


async def ask(config: Config, question: SplitQuestion, console: Console) -> Collaboration:
    """Loads the segments, prints the answer and its summary table, and returns the report.

    Raises what EdgeInferenceEngine and `SplitQuestion.check` do, and ContextLengthError for a prompt that is too long.
    """
    question.check()
    async with EdgeInferenceEngine(config) as engine:
        plan = engine.plan(question.threshold, standalone=question.standalone)
        ids = await engine.prompt_ids(question.prompt)
        max_tokens = min(question.max_tokens, engine.segments.context_length - len(ids))
        start = time.perf_counter()
        request = DecodingRequest(ids, max_tokens, question.sampling, plan)
        async with engine.answer(request) as answer:
            await _print_answer(answer, TextStream(engine.segments.piece), console, question.stream)
        report, tokens = answer.answer.report, len(answer.answer.committed) - len(ids)
        console.print(summary(report, plan, tokens, (time.perf_counter() - start) * 1000))
        return report


async def _print_answer(answer: SplitAnswer, text: TextStream, console: Console, stream: bool) -> None:
    parts: list[Text] = []
    async with aclosing(answer.run()) as chunks:
        before = dict(answer.answer.report.exits)
        async for chunk in chunks:
            style, before = style_of(answer, before), dict(answer.answer.report.exits)
            parts.append(Text(text.push(chunk.token_ids), style=style))
            if stream:
                console.print(parts[-1], end="")
    parts.append(Text(text.flush()))
    console.print(*(parts[-1:] if stream else parts), sep="", end="\n\n")


def style_of(answer: SplitAnswer, before: dict[str, int]) -> str:
    """The colour of the tokens committed since the exits' token counts were `before`."""
    exits = answer.answer.report.exits
    grown = [at for at, layer in enumerate(exits) if exits[layer] > before[layer]]
    return EXIT_STYLES[grown[0] % len(EXIT_STYLES)] if grown else CLOUD_STYLE


def summary(report: Collaboration, plan: Plan, tokens: int, total_ms: float) -> Table:
    """The summary table: tokens by exit, the cloud's part, times and bytes."""
    table = Table(title="How this answer came about", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    table.add_row("mode", "standalone" if plan.standalone else "split", "a split model" + describe_exactness(report))
    for at, (layer, count) in enumerate(report.exits.items()):
        style = EXIT_STYLES[at % len(EXIT_STYLES)]
        decides = at == len(report.exits) - 1 and (plan.standalone or report.degraded is not None)
        rule = "takes every token that is left" if decides else describe_threshold(plan.exits[at])
        table.add_row(Text(f"exit after {layer} layers", style=style), f"{count} tokens", rule)
    cloud = report.tokens[Provenance.CLOUD]
    table.add_row(Text("cloud", style=CLOUD_STYLE), f"{cloud} tokens", "no exit was confident enough")
    table.add_row(
        "cloud calls", str(report.cloud_calls), f"for {percent(cloud / tokens if tokens else None)} of tokens"
    )
    table.add_row("cloud computed", str(report.cloud_positions), "positions through its layers")
    table.add_row("pending positions", str(report.owed), "that later layers never had to compute")
    table.add_row("confidence", percent(report.confidence_score), "mean over all tokens")
    table.add_row("edge latency", f"{report.edge_latency_ms:.1f} ms", "waiting for segments")
    table.add_row("cloud latency", f"{report.cloud_latency_ms:.1f} ms", "waiting for the cloud, network included")
    table.add_row("total", f"{total_ms:.1f} ms", "from the question to the last token")
    table.add_row("bytes up, down", f"{report.bytes_up}, {report.bytes_down}", "hidden states; tokens")
    if report.degraded:
        table.add_row(Text("degraded", style="red"), "yes", Text(report.degraded, style="red"))
    return table


def describe_exactness(report: Collaboration) -> str:
    return ": the whole model's answer" if report.lossless else ", lossy: exits decide too"


def describe_threshold(confidence: float) -> str:
    return "never taken" if confidence > 1 else f"at a confidence of {confidence:g} or more"
