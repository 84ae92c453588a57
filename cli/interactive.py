"""The interactive mode: a conversation with completion, and commands that begin with a slash."""

import asyncio
import functools
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from rich.console import Console
from rich.table import Table

from cli import terminal
from cli.ask import QuestionSettings, ShownAnswer, read_answer
from cli.comparison import compare
from cli.conversation import MODES, Dialogue
from common.config import show
from common.config_schema import Config
from common.errors import FrameworkError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.types import Collaboration

COMPARED = ("edge", "gated", "lossless", "cloud")
WITHOUT_SLASH = ("stats", "config", "quit", "exit")
"""Commands that are also understood as plain words."""


@dataclass(frozen=True)
class Command:
    """`usage` and `help` are for /help; `run` gets what follows the command's name."""

    usage: str
    help: str
    run: Callable[[str], Awaitable[None] | None]


async def repl(client: EdgeCloudHTTPClient, config: Config, settings: QuestionSettings, console: Console) -> None:
    """Reads questions and commands until /quit or the end of the input; an error is printed in one line."""
    terminals = sys.stdin.isatty() and console.is_terminal
    await InteractiveChat(client, config, settings, console).run(None if terminals else plain_line)


async def plain_line() -> str:
    """The next line of the standard input; raises EOFError at its end."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        raise EOFError
    return line


class InteractiveChat:
    """Reads lines and does what they ask for; the conversation is its own."""

    def __init__(
        self, client: EdgeCloudHTTPClient, config: Config, settings: QuestionSettings, console: Console
    ) -> None:
        self._client = client
        self._config = config
        self._console = console
        self.conversation = Dialogue(settings)
        self.commands = self._commands()

    def _commands(self) -> dict[str, Command]:
        talk = self.conversation
        return {
            "/mode": Command("NAME", f"who answers: {', '.join(MODES)}", talk.choose_mode),
            "/threshold": Command(
                "[NUMBER]", "the edge's least confidence, 0 to 1; empty: as configured", talk.choose_threshold
            ),
            "/system": Command("[TEXT]", "what the model is told before the conversation", self._set_system),
            "/compare": Command("[TEXT]", f"{', '.join(COMPARED)} side by side; empty: the last one", self._compare),
            "/report": Command("", "how the last answer came about", self._report),
            "/stats": Command("", "what all answers add up to", lambda _: self._print(totals(talk.reports))),
            "/new": Command("", "begin a new conversation", lambda _: talk.forget()),
            "/save": Command("FILE", "write the conversation as JSON", self._save),
            "/config": Command("", "the configuration", lambda _: self._print(show(self._config))),
            "/help": Command("", "this list", self._help),
            "/quit": Command("", "end; Ctrl-D does, too", lambda _: None),
        }

    async def run(self, read: Callable[[], Awaitable[str]] | None = None) -> None:
        """Until /quit or the end of the input. `read` gives a line or raises EOFError; None: asks a person, with
        completion."""
        if read is None:
            session: PromptSession[str] = PromptSession(
                completer=CommandCompleter(self.commands), bottom_toolbar=self._toolbar
            )
            read = functools.partial(session.prompt_async, "> ")
        self._console.print("Ask anything. /help shows the commands, Ctrl-C stops an answer, Ctrl-D ends.", style="dim")
        while True:
            try:
                line = (await read()).strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line in WITHOUT_SLASH:
                line = f"/{line}"
            if line in ("/quit", "/exit"):
                return
            try:
                await self._do(line)
            except FrameworkError as error:
                self._console.print(f"error: {error.message}", style="red")

    async def _do(self, line: str) -> None:
        if not line.startswith("/"):
            if line:
                await self._ask(line)
            return
        name, _, rest = line.partition(" ")
        if name not in self.commands:
            raise RequestError(f"no command {name}; /help shows those that there are")
        if (running := self.commands[name].run(rest.strip())) is not None:
            await running

    async def _ask(self, prompt: str) -> None:
        answer, talk = ShownAnswer(), self.conversation
        request = talk.request(prompt)
        try:
            stopped = await _until_interrupted(read_answer(self._client, request, answer, self._console))
        finally:
            self._console.print()
        if stopped and not answer.text:
            return
        talk.record(prompt, answer)
        if stopped or answer.report is None:
            self._console.print("stopped", style="dim")
        else:
            self._console.print(terminal.figures(answer.report, answer.total_ms))

    async def _compare(self, question: str) -> None:
        talk = self.conversation
        asked = [message.text for message in talk.turns if message.role == "user"]
        if not question and not asked:
            raise RequestError("/compare takes a question")
        before = Dialogue(talk.settings, talk.turns if question else talk.turns[:-2], talk.system)
        requests = {name: before.in_mode(name, question or asked[-1]) for name in COMPARED}
        await _until_interrupted(compare(self._client, requests, self._console))

    def _set_system(self, text: str) -> None:
        self.conversation.system = text

    def _save(self, file: str) -> None:
        if not file:
            raise RequestError("/save takes the name of a file")
        self.conversation.save(file)
        self._console.print(f"written: {file}")

    def _report(self, _: str) -> None:
        last = self.conversation.last
        if last is None or last.report is None:
            raise RequestError("there is no complete answer yet")
        self._console.print(terminal.summary(last.report, last.total_ms))

    def _help(self, _: str) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, command in self.commands.items():
            table.add_row(f"{name} {command.usage}", command.help)
        self._console.print(table)

    def _print(self, shown: str | Table) -> None:
        self._console.print(shown, markup=False)

    def _toolbar(self) -> str:
        talk = self.conversation
        threshold = talk.settings.confidence_threshold
        parts = [talk.mode, f"{len(talk.turns) // 2} turns"]
        parts += [f"threshold {threshold:g}"] if threshold is not None else []
        parts += ["system prompt"] if talk.system else []
        return " · ".join(parts)


class CommandCompleter(Completer):
    """Completes the names of commands, the modes after /mode, and files after /save."""

    def __init__(self, commands: Collection[str]) -> None:
        self._commands = commands
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, rest = document.text_before_cursor.partition(" ")
        if name == "/save" and space:
            yield from self._files.get_completions(Document(rest), complete_event)
        elif name == "/mode" or (name.startswith("/") and not space):
            begun, words = (rest, MODES) if space else (name, self._commands)
            yield from (Completion(word, -len(begun)) for word in words if word.startswith(begun))


async def _until_interrupted(work: Awaitable[object]) -> bool:
    """Waits for `work`; Ctrl-C ends it, and only it: then the result is true."""
    task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is None or current.cancelling():
            raise
        return True
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return False


def totals(reports: list[Collaboration]) -> Table:
    """The sums over all answers since the start."""
    drafted, accepted = sum(r.drafted for r in reports), sum(r.accepted for r in reports)
    tokens = {p: sum(r.tokens[p] for r in reports) for p in (reports[0].tokens if reports else ())}
    table = Table("since the start", "value", show_header=False)
    table.add_row("answers", str(len(reports)))
    for provenance, number in tokens.items():
        table.add_row(f"tokens {provenance}", str(number))
    table.add_row("acceptance rate", terminal.percent(accepted / drafted if drafted else None))
    table.add_row("cloud calls", str(sum(r.cloud_calls for r in reports)))
    table.add_row("bytes up", str(sum(r.bytes_up for r in reports)))
    table.add_row("bytes down", str(sum(r.bytes_down for r in reports)))
    table.add_row("degraded answers", str(sum(r.degraded is not None for r in reports)))
    return table
