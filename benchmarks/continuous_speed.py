"""Continuous verification against plain streaming of the same server, over a simulated network, as ratios.

python -m benchmarks.continuous_speed [--tokens 256] [--prompts 3] [--repeats 2] [--round-trips 0,14,50,100]

The server is a real one with a random model of 28M parameters, so that a step is long enough to matter. The drafter is
an oracle: it knows the right answer, and is wrong at a fixed share of its positions; behind a wrong token all is wrong.
It drafts from the newest token that has reached it. Both ways pass the same proxy, interleaved.
"""

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import Progress
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from common import cli, terminal
from common.connection import HTTPClient
from common.demo import free_ports
from common.draft_length import stream_draft_length
from common.frames import LONGEST_DRAFT, EndFrame
from common.stream_client import CloudStream
from common.supervisor import PROJECT, ServerProcess, Supervisor
from tests.delay_proxy import DelayProxy

RIGHT = (0.75, 0.85, 0.93)
DEMO = PROJECT / "models" / "demo-cloud"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@contextmanager
def random_model() -> Iterator[Path]:
    """A model of 28M parameters with the demo's tokenizer, which never ends its answer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.0  # the end's logit is always 0: never the greatest
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name in TOKENIZER:
            shutil.copy(DEMO / name, folder)
        yield Path(folder)


@dataclass
class Cell:
    """One round trip (seconds) and share of right drafts: the ratios of speeds, and the engine steps per token."""

    round_trip: float
    right: float
    ratios: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    same: bool = True


@dataclass
class Question:
    prompt: list[int]
    answer: list[int]


class Oracle:
    """Drafts `answer` with fixed mistakes, and learns from what comes how often it is right and how far behind it is."""

    def __init__(self, question: Question, right: float, seed: int, round_trip: float) -> None:
        rng = random.Random(seed)
        self._truth = question.prompt + question.answer
        self._wrong = [rng.random() >= right for _ in self._truth]
        self._known = len(question.prompt)
        self._round_trip = round_trip
        self._started = time.perf_counter()
        self._first: float | None = None
        self._seen = [1.0, 1.0]  # tokens foretold, and of these right; as if one had been

    def learn(self, count: int) -> None:
        """`count` more tokens have come; each is compared with what the drafter says at its place."""
        now = time.perf_counter()
        self._first = self._first or now
        for position in range(self._known, self._known + count):
            self._seen[0] += 1
            self._seen[1] += not self._wrong[position]
        self._known += count
        self._speed = (self._known - len(self._truth) + ANSWER) / max(now - self._first, 0.01)

    def draft(self) -> tuple[int, list[int]]:
        ahead = self._round_trip * self._speed
        length = stream_draft_length(self._seen[1] / self._seen[0], ahead, LONGEST_DRAFT)
        places = range(self._known, min(self._known + length, len(self._truth)))
        first = next((place for place in places if self._wrong[place]), len(self._truth))
        return self._known, [self._truth[place] if place < first else 1 + place % 7 for place in places]


ANSWER = 256


async def timed(
    client: HTTPClient, prompt: list[int], tokens: int, oracle: Oracle | None
) -> tuple[float, list[int], EndFrame]:
    """Seconds from the first tokens to the end, the tokens, the end."""
    ids: list[int] = []
    async with CloudStream(client, prompt, tokens) as stream:
        began = 0.0
        async for frame in stream:
            began = began or time.perf_counter()
            ids += frame.token_ids
            if oracle:
                oracle.learn(len(frame.token_ids))
                position, drafted = oracle.draft()
                if drafted:
                    await stream.draft(position, drafted)
    assert stream.end is not None
    return time.perf_counter() - began, ids, stream.end


async def main() -> None:
    parser = cli.parser("Measure continuous verification against plain streaming.")
    parser.add_argument("--tokens", type=int, default=256, help="length of each answer (default 256)")
    parser.add_argument("--prompts", type=int, default=3, help="different prompts (default 3)")
    parser.add_argument("--repeats", type=int, default=2, help="answers per prompt, cell and way (default 2)")
    parser.add_argument("--round-trips", default="0,14,50,100", help="milliseconds (default 0,14,50,100)")
    args = parser.parse_args()
    global ANSWER
    ANSWER = args.tokens
    console = terminal.console()
    cells = [Cell(float(ms) / 1000, right) for ms in args.round_trips.split(",") for right in RIGHT]
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    rng = random.Random(1)
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
            async with HTTPClient(url) as direct:
                questions = []
                for _ in range(args.prompts):
                    prompt = [rng.randrange(5, 4096) for _ in range(32)]
                    _, answer, _ = await timed(direct, prompt, args.tokens, None)
                    questions.append(Question(prompt, answer))
            with Progress(console=console) as bar:
                work = [(cell, repeat) for repeat in range(args.repeats) for cell in cells]
                for cell, repeat in bar.track(work):
                    await measure(port, cell, questions, repeat)
    console.print(table(cells))


async def measure(port: int, cell: Cell, questions: list[Question], repeat: int) -> None:
    async with DelayProxy("127.0.0.1", port, cell.round_trip / 2) as proxy, HTTPClient(proxy.url) as client:
        for n, question in enumerate(questions):
            spent = {}
            for drafting in (False, True) if (n + repeat) % 2 else (True, False):
                oracle = Oracle(question, cell.right, n, cell.round_trip) if drafting else None
                spent[drafting], ids, end = await timed(client, question.prompt, len(question.answer), oracle)
                cell.same &= ids == question.answer
                if drafting:
                    cell.steps.append(end.steps / len(ids))
            cell.ratios.append(spent[False] / spent[True])


def table(cells: list[Cell]) -> Table:
    made = Table(title="continuous / plain", title_justify="left")
    made.add_column("round trip")
    for right in RIGHT:
        made.add_column(f"{right:.0%} right", justify="right")
    for n in range(0, len(cells), len(RIGHT)):
        row = cells[n : n + len(RIGHT)]
        texts = [
            f"{statistics.median(c.ratios):.2f} [{min(c.ratios):.2f}-{max(c.ratios):.2f}] ({statistics.mean(c.steps):.2f}){'' if c.same else ' DIFFERS'}"
            for c in row
        ]
        made.add_row(f"{row[0].round_trip * 1000:g} ms", *texts)
    return made


if __name__ == "__main__":
    sys.exit(cli.run(main()))
