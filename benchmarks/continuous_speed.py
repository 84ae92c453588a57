"""Continuous verification against plain streaming by the same server, over a simulated network, as ratios.

python -m benchmarks.continuous_speed [--tokens 256] [--prompts 2] [--repeats 2] [--round-trips 0,14,50,100]

The server is a real one with a random model of 28M parameters, so that a step is long enough to matter. The drafter is
an oracle: it knows the right answer, but is wrong at a fixed share of its places, and behind a wrong token all is so.
It drafts from the newest token that has reached it, and knows no more of the network than what it measures.
"""

import random
import statistics
import sys
import time
from dataclasses import dataclass, field

from rich.progress import Progress
from rich.table import Table

from cli import terminal
from cli.args import config_parser, run_program
from cli.demo import free_ports
from cli.supervisor import PROJECT, ServerProcess, Supervisor
from common.cloud_client.stream import CloudStream
from common.decoding.draft_length import iid_acceptance, stream_draft_length
from common.http.client import HTTPClient
from common.protocol.stream_frames import LONGEST_DRAFT, EndFrame, StartFrame
from experiments.harness.delay_proxy import DelayProxy
from models.random_model import random_model

RIGHT = (0.75, 0.85, 0.93)


@dataclass
class StreamPrompt:
    prompt: list[int]
    answer: list[int]


@dataclass
class SpeedCell:
    """One round trip (seconds) and share of right places: ratios of speed, engine steps per token, all tokens equal."""

    round_trip: float
    right: float
    ratios: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    same: bool = True

    def __str__(self) -> str:
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}"
        steps = f"{statistics.mean(self.steps):.2f} steps"
        return f"{self.ratio:.2f} ({spread}), {steps}{'' if self.same else ' NOT THE SAME'}"

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


class Oracle:
    """Drafts what follows, with mistakes, and learns from what comes how often it is right and how fast it comes."""

    def __init__(self, question: StreamPrompt, right: float, seed: int, round_trip: float) -> None:
        rng = random.Random(seed)
        self._truth = question.prompt + question.answer
        self._mistaken = [rng.random() >= right for _ in self._truth]
        self._begin = self._known = len(question.prompt)
        self._round_trip = round_trip
        self._started = 0.0
        self._acceptance = 0.8

    def learn(self, count: int) -> None:
        """`count` more tokens have come; each shows whether the drafter is right at its place."""
        self._started = self._started or time.perf_counter()
        for place in range(self._known, self._known + count):
            self._acceptance += 0.05 * ((not self._mistaken[place]) - self._acceptance)
        self._known += count

    def draft(self) -> tuple[int, list[int]]:
        """Where the draft begins, and its tokens."""
        seconds = time.perf_counter() - self._started
        speed = (self._known - self._begin) / max(seconds, 0.02)
        length = stream_draft_length(iid_acceptance(self._acceptance), self._round_trip * speed, LONGEST_DRAFT)
        places = range(self._known, min(self._known + length, len(self._truth)))
        first = next((place for place in places if self._mistaken[place]), len(self._truth))
        return self._known, [self._truth[place] if place < first else 1 + place % 7 for place in places]


async def timed(
    client: HTTPClient, prompt: list[int], tokens: int, oracle: Oracle | None
) -> tuple[float, list[int], EndFrame]:
    """Seconds from the question to the end of the answer, its tokens, and its end."""
    ids: list[int] = []
    began = time.perf_counter()
    async with CloudStream(client, StartFrame(token_ids=prompt, max_tokens=tokens)) as stream:
        async for frame in stream:
            ids += frame.token_ids
            if oracle:
                oracle.learn(len(frame.token_ids))
                position, drafted = oracle.draft()
                if drafted:
                    await stream.draft(position, drafted)
        seconds = time.perf_counter() - began
    assert stream.end is not None
    return seconds, ids, stream.end


async def round_trip(client: HTTPClient) -> float:
    """Seconds for the smallest question that this server answers, at its quickest."""
    spent = []
    for _ in range(5):
        began = time.perf_counter()
        await client.get("/health", dict)
        spent.append(time.perf_counter() - began)
    return min(spent)


async def measure(port: int, cell: SpeedCell, questions: list[StreamPrompt], repeat: int) -> None:
    """Each question both ways; which one is first changes."""
    async with DelayProxy("127.0.0.1", port, cell.round_trip / 2) as proxy, HTTPClient(proxy.url) as client:
        measured = await round_trip(client)
        for n, question in enumerate(questions):
            spent = {}
            for drafting in (False, True) if (n + repeat) % 2 else (True, False):
                oracle = Oracle(question, cell.right, n, measured) if drafting else None
                spent[drafting], ids, end = await timed(client, question.prompt, len(question.answer), oracle)
                cell.same &= ids == question.answer
                if drafting:
                    cell.steps.append(end.steps / len(ids))
            cell.ratios.append(spent[False] / spent[True])


async def ask(url: str, count: int, tokens: int) -> list[StreamPrompt]:
    """Prompts, with the answers that the server gives alone."""
    rng = random.Random(1)
    prompts = [[rng.randrange(5, 4096) for _ in range(32)] for _ in range(count)]
    async with HTTPClient(url) as client:
        return [StreamPrompt(prompt, (await timed(client, prompt, tokens, None))[1]) for prompt in prompts]


async def main() -> None:
    parser = config_parser("Measure continuous verification against plain streaming.")
    parser.add_argument("--tokens", type=int, default=256, help="length of each answer (default 256)")
    parser.add_argument("--prompts", type=int, default=2, help="different prompts (default 2)")
    parser.add_argument("--repeats", type=int, default=2, help="answers per prompt, cell and way (default 2)")
    parser.add_argument("--round-trips", default="0,14,50,100", help="milliseconds (default 0,14,50,100)")
    args = parser.parse_args()
    console = terminal.console()
    cells = [SpeedCell(float(ms) / 1000, right) for ms in args.round_trips.split(",") for right in RIGHT]
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with random_model() as model:
        flags = [
            "--model",
            str(model),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--set",
            "cloud.model.dtype=float32",
        ]
        server = ServerProcess("cloud", "start_cloud.py", url, flags, PROJECT / "logs" / "continuous.log")
        async with Supervisor([server], console.print).running():
            questions = await ask(url, args.prompts, args.tokens)
            work = [(cell, repeat) for repeat in range(args.repeats) for cell in cells]
            with Progress(console=console) as bar:
                for cell, repeat in bar.track(work, description="interleaved repeats"):
                    await measure(port, cell, questions, repeat)
    console.print(table(cells))
    console.print(f"the slowest cell: {min(cell.ratio for cell in cells):.2f} of plain streaming")


def table(cells: list[SpeedCell]) -> Table:
    made = Table(
        title="Speed over plain streaming: median (least-greatest), engine steps per token", title_justify="left"
    )
    for name in ("round trip", *(f"{right:.0%} right per token" for right in RIGHT)):
        made.add_column(name, justify="right", no_wrap=True)
    for n in range(0, len(cells), len(RIGHT)):
        made.add_row(f"{cells[n].round_trip * 1000:g} ms", *map(str, cells[n : n + len(RIGHT)]))
    return made


if __name__ == "__main__":
    sys.exit(run_program(main()))
