"""One question to a split model in a terminal: the answer coloured by exit, then what became of it. Knows no server."""

import time
from contextlib import aclosing

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.terminal import percent
from common.config_schema import Config
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.errors import ConfigError, ContextLengthError, RequestError
from common.protocol.openai import Message
from common.types import Collaboration, Provenance, Sampling
from edge.split.answer import SplitAnswer
from edge.split.engine import EdgeInferenceEngine
from edge.text.detokenizer import TextStream

EXIT_STYLES = "green", "cyan", "blue", "yellow"
"""Of the first exit's tokens, the second's and so on; then from the beginning."""
CLOUD_STYLE = "magenta"


async def ask(
    config: Config,
    prompt: str,
    console: Console,
    *,
    standalone: bool,
    threshold: float | None = None,
    max_tokens: int = 128,
    sampling: Sampling,
    stream: bool = False,
) -> Collaboration:
    """Loads the segments, prints the answer (as it comes, or whole at its end) and its table; returns the report.

    `threshold`: of all exits in place of the config's. Raises what EdgeInferenceEngine does, and RequestError (or a
    child) for a prompt that is empty or too long.
    """
    if not prompt.strip():
        raise RequestError("the prompt is empty")
    if threshold is not None and not threshold >= 0:
        raise ConfigError(f"--threshold must be 0 or more, not {threshold:g}")
    async with EdgeInferenceEngine(config) as engine:
        segments, plan = engine.segments, engine.plan(threshold, standalone=standalone)
        text = (
            await engine.template.render([Message(role="user", content=prompt)]) if segments.chat_template else prompt
        )
        ids = segments.tokenize(text, add_special=not segments.chat_template, parse_special=True)
        room = segments.context_length - len(ids)
        if room <= 0:
            raise ContextLengthError(
                f"{len(ids)} prompt tokens leave no room in a context of {segments.context_length}"
            )
        began, shown = time.perf_counter(), TextStream(segments.piece)
        parts: list[Text] = []
        async with (
            engine.answer(DecodingRequest(ids, min(max_tokens, room), sampling, plan)) as answer,
            aclosing(answer.run()) as chunks,
        ):
            before = dict(answer.answer.report.exits)
            async for chunk in chunks:
                taken, before = style_of(answer, before), dict(answer.answer.report.exits)
                parts.append(Text(shown.push(chunk.token_ids), style=taken))
                if stream:
                    console.print(parts[-1], end="")
        parts.append(Text(shown.flush()))
        console.print(*(parts[-1:] if stream else parts), sep="", end="\n\n")
        report = answer.answer.report
        tokens = len(answer.answer.committed) - len(ids)
        console.print(summary(report, plan, tokens, (time.perf_counter() - began) * 1000))
        return report


def style_of(answer: SplitAnswer, before: dict[str, int]) -> str:
    """The colour of what was committed since the exits had given so many tokens."""
    exits = answer.answer.report.exits
    grown = [at for at, layer in enumerate(exits) if exits[layer] > before[layer]]
    return EXIT_STYLES[grown[0] % len(EXIT_STYLES)] if grown else CLOUD_STYLE


def summary(report: Collaboration, plan: Plan, tokens: int, total_ms: float) -> Table:
    """Tokens by exit, what the cloud was asked, and what that took."""
    table = Table(title="How this answer came about", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    table.add_row("mode", "standalone" if plan.standalone else "collaborative", "a split model" + said(report))
    for at, (layer, count) in enumerate(report.exits.items()):
        style = EXIT_STYLES[at % len(EXIT_STYLES)]
        decides = at == len(report.exits) - 1 and (plan.standalone or report.degraded is not None)
        sure = "decides what no earlier one was sure of" if decides else threshold(plan.exits[at])
        table.add_row(Text(f"exit after {layer} layers", style=style), f"{count} tokens", sure)
    cloud = report.tokens[Provenance.CLOUD]
    table.add_row(Text("cloud", style=CLOUD_STYLE), f"{cloud} tokens", "no exit was sure")
    table.add_row("cloud asks", str(report.cloud_calls), f"{percent(cloud / tokens if tokens else None)} of tokens")
    table.add_row("cloud computed", str(report.cloud_positions), "positions, in its layers")
    table.add_row("owed", str(report.owed), "positions that later layers never had to compute")
    table.add_row("confidence", percent(report.confidence_score), "mean over all tokens")
    table.add_row("edge latency", f"{report.edge_latency_ms:.1f} ms", "waiting for segments")
    table.add_row("cloud latency", f"{report.cloud_latency_ms:.1f} ms", "waiting for the cloud, network included")
    table.add_row("total", f"{total_ms:.1f} ms", "from the question to the last token")
    table.add_row("bytes up, down", f"{report.bytes_up}, {report.bytes_down}", "hidden states and questions; tokens")
    if report.degraded:
        table.add_row(Text("degraded", style="red"), "yes", Text(report.degraded, style="red"))
    return table


def said(report: Collaboration) -> str:
    return ": the whole model's answer" if report.lossless else ", lossy: exits decide too"


def threshold(confidence: float) -> str:
    """When an exit's token is taken."""
    return "never taken" if confidence > 1 else f"at a confidence of {confidence:g} or more"
