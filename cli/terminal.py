"""Formats an answer for a terminal: text coloured by provenance, and a summary table."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.types import Collaboration, Provenance

STYLES = {
    Provenance.EDGE: "green",
    Provenance.ACCEPTED: "cyan",
    Provenance.RECOVERED: "yellow",
    Provenance.BONUS: "blue",
    Provenance.CLOUD: "magenta",
}
MEANINGS = {
    Provenance.EDGE: "the edge alone",
    Provenance.ACCEPTED: "edge drafts that the cloud accepted",
    Provenance.RECOVERED: "drawn by the cloud in place of a rejected draft token",
    Provenance.BONUS: "drawn by the cloud after an accepted draft",
    Provenance.CLOUD: "the cloud alone",
}


def styled(text: str, provenance: Provenance | None) -> Text:
    return Text(text, style=STYLES[provenance] if provenance else "")


def summary(report: Collaboration, total_ms: float) -> Table:
    """The summary table of one answer."""
    table = Table(title="How this answer came about", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    table.add_row(
        "mode", report.mode, "lossless: as the cloud alone would" if report.lossless else "lossy: the edge decides too"
    )
    if report.routed_to:
        score = "the edge drew nothing" if report.route_score is None else f"score {report.route_score:.2f}"
        table.add_row("routed to", report.routed_to, f"{score}; the cloud from {report.route_threshold:g} on")
    for provenance in Provenance:
        count = report.tokens[provenance]
        table.add_row(styled(f"tokens {provenance}", provenance), str(count), MEANINGS[provenance])
    for layer, count in report.exits.items():
        table.add_row(f"exit after {layer}", str(count), f"of the edge's tokens, after {layer} layers")
    table.add_row("rounds", str(report.rounds), "times the cloud was asked")
    table.add_row("acceptance rate", percent(report.acceptance_rate), f"{report.accepted} of {report.drafted} drafted")
    table.add_row("confidence", percent(report.confidence_score), "mean over the edge's tokens")
    table.add_row("edge latency", f"{report.edge_latency_ms:.1f} ms", "drafting")
    table.add_row("cloud latency", f"{report.cloud_latency_ms:.1f} ms", f"{report.cloud_calls} calls, with the network")
    table.add_row("total", f"{total_ms:.1f} ms", "from the question to the last token")
    table.add_row("bytes up", str(report.bytes_up), "message bodies to the cloud")
    table.add_row("bytes down", str(report.bytes_down), "message bodies from the cloud")
    if report.explored:
        table.add_row("explored", str(report.explored), "confident drafts that were verified all the same, to learn")
    if report.degraded:
        table.add_row(Text("degraded", style="red"), "yes", Text(report.degraded, style="red"))
    return table


def figures(report: Collaboration, total_ms: float) -> Text:
    """The summary of one answer in a line, and another if the cloud was lost."""
    counts = [styled(f"{source} {count}", Provenance(source)) for source, count in report.tokens.items() if count]
    rest = [f"{total_ms / 1000:.1f} s", "lossless" if report.lossless else "lossy"]
    rest += [f"routed to the {report.routed_to}"] if report.routed_to else []
    if report.degraded:
        rest.append(f"the edge went on alone: {report.degraded}")
    return Text(" · ").join([*counts, *(Text(part, style="dim") for part in rest)])


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def console() -> Console:
    """A console that uses colours only on a terminal and prints brackets as they are."""
    return Console(highlight=False, markup=False)
