"""The interactive mode: reads prompts and the commands stats, config, quit and exit in a loop."""

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from rich.console import Console
from rich.table import Table

from cli.ask import QuestionSettings, ask
from cli.terminal import percent
from common.config import show
from common.config_schema import Config
from common.errors import FrameworkError
from common.http_client import EdgeCloudHTTPClient
from common.types import Collaboration

COMMANDS = ("stats", "config", "quit", "exit")


async def repl(client: EdgeCloudHTTPClient, config: Config, settings: QuestionSettings, console: Console) -> None:
    """Reads prompts until quit, exit or end of input; an error is printed in one line, and the loop goes on."""
    session: PromptSession[str] = PromptSession(completer=WordCompleter(list(COMMANDS), sentence=True))
    reports: list[Collaboration] = []
    console.print(f"Ask anything, or type one of: {', '.join(COMMANDS)}.")
    while True:
        try:
            line = (await session.prompt_async("> ")).strip()
        except (EOFError, KeyboardInterrupt):
            return
        match line:
            case "":
                continue
            case "quit" | "exit":
                return
            case "stats":
                console.print(totals(reports))
            case "config":
                console.print(show(config), markup=False)
            case prompt:
                try:
                    reports.append((await ask(client, prompt, settings, console))[0])
                except FrameworkError as error:
                    console.print(f"error: {error.message}")


def totals(reports: list[Collaboration]) -> Table:
    """The sums over all answers since the start."""
    drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
    tokens = {p: sum(r.tokens[p] for r in reports) for p in (reports[0].tokens if reports else ())}
    table = Table("since the start", "value", show_header=False)
    table.add_row("answers", str(len(reports)))
    for provenance, count in tokens.items():
        table.add_row(f"tokens {provenance}", str(count))
    table.add_row("acceptance rate", percent(accepted / drafted if drafted else None))
    table.add_row("cloud calls", str(sum(r.cloud_calls for r in reports)))
    table.add_row("bytes up", str(sum(r.bytes_up for r in reports)))
    table.add_row("bytes down", str(sum(r.bytes_down for r in reports)))
    table.add_row("degraded answers", str(sum(r.degraded is not None for r in reports)))
    return table
