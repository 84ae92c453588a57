"""Compares continuous verification with plain streaming by the same cloud server, over simulated networks.

python -m benchmarks.continuous_speed [--config FILE] [--set KEY=VALUE] [--tokens 256] [--round-trips 0,14,50,100]

The server is a real one with the model of the config or, in place of the demo's, a random one of 28M parameters, so
that an engine step takes long enough to matter; in float32 unless `--set cloud.model.dtype` says otherwise. The drafter
is an oracle that knows the right answer; it is wrong at a fixed share of positions, and every token after a wrong one
is wrong too. It drafts from the newest token that it has received and knows of the network only what it measures. Each
prompt is answered both ways, one right after the other, in alternating order. A ratio is the time of plain streaming
over the time of continuous verification: above 1 continuous verification is faster.
"""

import random
import statistics
import sys
import time
from dataclasses import dataclass, field

from rich.progress import Progress
from rich.table import Table

from benchmarks.setup.pair import model_flags
from cli import terminal
from cli.args import config_parser, run_program
from cli.demo import free_ports
from cli.server_process import CLOUD, ServerProcess
from cli.supervisor import Supervisor
from common.cloud_client.stream import CloudStream
from common.decoding.draft_yield import iid_acceptance, stream_draft_length
from common.files.installation import logs
from common.http.client import HTTPClient
from common.protocol.stream_frames import LONGEST_DRAFT, EndFrame, StartFrame
from experiments.harness.delay_proxy import DelayProxy

ACCURACIES = (0.75, 0.85, 0.93)
"""Shares of positions at which the oracle is right."""


@dataclass
class StreamPrompt:
    """A prompt and the server's greedy answer to it."""

    prompt: list[int]
    answer: list[int]


@dataclass
class SpeedCell:
    """What was measured with one round trip (seconds) and one accuracy of the oracle.

    `ratios`: speed over plain streaming; `steps`: engine steps per token; `same`: whether all answers were equal.
    """

    round_trip: float
    accuracy: float
    ratios: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    same: bool = True

    def __str__(self) -> str:
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        steps = f"{statistics.mean(self.steps):.2f} steps"
        return f"{self.ratio:.2f} ({spread}), {steps}{'' if self.same else ', ANSWERS DIFFER'}"

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


class Oracle:
    """Drafts the right answer with mistakes; estimates acceptance rate and stream speed from what it receives."""

    def __init__(self, question: StreamPrompt, accuracy: float, seed: int, round_trip: float) -> None:
        rng = random.Random(seed)
        self._truth = question.prompt + question.answer
        self._mistaken = [rng.random() >= accuracy for _ in self._truth]
        self._begin = self._received = len(question.prompt)
        self._round_trip = round_trip
        self._started = 0.0
        self._acceptance = 0.8

    def observe(self, count: int) -> None:
        """Records that `count` more tokens arrived; each shows whether the oracle is right at its position."""
        self._started = self._started or time.perf_counter()
        for position in range(self._received, self._received + count):
            self._acceptance += 0.05 * ((not self._mistaken[position]) - self._acceptance)
        self._received += count

    def draft(self) -> tuple[int, list[int]]:
        """The position at which the draft begins, and its tokens."""
        seconds = time.perf_counter() - self._started
        speed = (self._received - self._begin) / max(seconds, 0.02)
        length = stream_draft_length(iid_acceptance(self._acceptance), self._round_trip * speed, LONGEST_DRAFT)
        positions = range(self._received, min(self._received + length, len(self._truth)))
        wrong = next((position for position in positions if self._mistaken[position]), len(self._truth))
        return self._received, [self._truth[n] if n < wrong else 1 + n % 7 for n in positions]


async def timed(
    client: HTTPClient, prompt: list[int], tokens: int, oracle: Oracle | None
) -> tuple[float, list[int], EndFrame]:
    """Seconds of the whole answer, its tokens and its end frame; with an oracle, it sends drafts."""
    ids: list[int] = []
    began = time.perf_counter()
    async with CloudStream(client, StartFrame(token_ids=prompt, max_tokens=tokens)) as stream:
        async for frame in stream:
            ids += frame.token_ids
            if oracle:
                oracle.observe(len(frame.token_ids))
                position, drafted = oracle.draft()
                if drafted:
                    await stream.draft(position, drafted)
        seconds = time.perf_counter() - began
    assert stream.end is not None
    return seconds, ids, stream.end


async def round_trip(client: HTTPClient) -> float:
    """The shortest of five requests to /health, in seconds."""
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        await client.get("/health", dict)
        spent.append(time.perf_counter() - began)
    return min(spent)


async def measure(port: int, cell: SpeedCell, questions: list[StreamPrompt], repeat: int) -> None:
    """Answers each prompt with plain streaming and with continuous verification, in alternating order."""
    async with DelayProxy("127.0.0.1", port, cell.round_trip / 2) as proxy, HTTPClient(proxy.url) as client:
        measured = await round_trip(client)
        for n, question in enumerate(questions):
            spent = {}
            for drafting in (False, True) if (n + repeat) % 2 else (True, False):
                oracle = Oracle(question, cell.accuracy, n, measured) if drafting else None
                spent[drafting], ids, end = await timed(client, question.prompt, len(question.answer), oracle)
                cell.same &= ids == question.answer
                if drafting:
                    cell.steps.append(end.steps / len(ids))
            cell.ratios.append(spent[False] / spent[True])


async def prompts_for(url: str, count: int, tokens: int) -> list[StreamPrompt]:
    """Random prompts of 32 tokens, with the server's answers to them."""
    rng = random.Random(1)
    prompts = [[rng.randrange(5, 4096) for _ in range(32)] for _ in range(count)]
    async with HTTPClient(url) as client:
        return [StreamPrompt(prompt, (await timed(client, prompt, tokens, None))[1]) for prompt in prompts]


async def main() -> None:
    parser = config_parser("Compare the speed of continuous verification with plain streaming.")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each answer (default 256)")
    parser.add_argument("--prompts", type=int, default=2, help="different prompts (default 2)")
    parser.add_argument(
        "--repeats", type=int, default=2, help="answers to each prompt at each round trip and accuracy (default 2)"
    )
    parser.add_argument(
        "--round-trips", default="0,14,50,100", help="round trips in milliseconds (default 0,14,50,100)"
    )
    args = parser.parse_args()
    console = terminal.console()
    cells = [SpeedCell(float(ms) / 1000, accuracy) for ms in args.round_trips.split(",") for accuracy in ACCURACIES]
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with model_flags(args) as model:
        flags = [*model, "--host", "127.0.0.1", "--port", str(port)]
        server = ServerProcess("cloud", CLOUD, url, flags, logs() / "continuous.log")
        async with Supervisor([server], console.print).running():
            questions = await prompts_for(url, args.prompts, args.tokens)
            work = [(cell, repeat) for repeat in range(args.repeats) for cell in cells]
            with Progress(console=console) as bar:
                for cell, repeat in bar.track(work, description="interleaved repeats"):
                    await measure(port, cell, questions, repeat)
    console.print(table(cells))
    console.print(f"lowest ratio over all cells: {min(cell.ratio for cell in cells):.2f}")


def table(cells: list[SpeedCell]) -> Table:
    result = Table(title="Speed over plain streaming: median (range), engine steps per token", title_justify="left")
    for name in ("round trip", *(f"{accuracy:.0%} right per token" for accuracy in ACCURACIES)):
        result.add_column(name, justify="right", no_wrap=True)
    for n in range(0, len(cells), len(ACCURACIES)):
        result.add_row(f"{cells[n].round_trip * 1000:g} ms", *map(str, cells[n : n + len(ACCURACIES)]))
    return result


if __name__ == "__main__":
    sys.exit(run_program(main()))
