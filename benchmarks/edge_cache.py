"""Compares the edge's time to the first token of a prompt whose beginning is in its prefix store (F3) with a cold one.

python -m benchmarks.edge_cache [--model FILE.gguf] [--config FILE] [--set KEY=VALUE] [--prefix 1500] [--threads 1]

Each repeat draws a new beginning and measures, one after another: cold (nothing stored), live KV, live KV of a sequence
in use, KV in RAM, on disk, compressed on disk, and F3 off. A ratio is the time of one of these over the cold time of
the same repeat: below 1 it is faster than computing the whole prompt. KV files are dropped from the page cache before
they are read, as far as the system allows.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from rich.progress import Progress

from benchmarks.random_gguf import LlamaShape, model_file
from benchmarks.setup.pair import edge_file
from benchmarks.setup.ratio_table import RequiredRatio, table
from cli import terminal
from cli.args import config_parser, run_program
from common.config_edge import EdgeModelConfig
from edge.engine.engine import EdgeEngine
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache

RANDOM_30M = LlamaShape("random-30m", 4096, 512, 8, 8, 8, 1536)
"""30M parameters and, without grouped heads, 16 KiB of KV a token: much KV to restore for little computing."""
SUFFIX = 32
"""Tokens of a prompt after its known beginning."""
REQUIRED = {"live": 0.10, "live, in use": 0.10, "RAM": 0.15, "disk": 0.30, "disk, zstd": 0.30}
"""The largest ratio allowed for each place of the KV."""


class Cached:
    """An engine with its own prefix store, and random prompts for it."""

    def __init__(self, engine: EdgeEngine, store: LlamaCppKVCache | AblatedKVCache, source: random.Random) -> None:
        self._engine, self._store, self._source = engine, store, source

    def tokens(self, count: int) -> list[int]:
        return [self._source.randrange(100, 4000) for _ in range(count)]

    async def first_token(self, beginning: list[int]) -> float:
        """Seconds from the request for a sequence to the first token after `beginning` and SUFFIX new tokens."""
        prompt = beginning + self.tokens(SUFFIX)
        began = time.perf_counter()
        async with self._engine.sequence(prompt) as sequence:
            await sequence.draft(prompt, 1)
            return time.perf_counter() - began

    async def while_in_use(self, beginning: list[int]) -> float:
        """The same, while another request uses the sequence that holds the beginning."""
        async with self._engine.sequence(beginning) as holder:
            await holder.draft(beginning, 1)
            return await self.first_token(beginning)

    async def displace(self, folder: Path) -> None:
        """Fills every sequence with other tokens, so that the store keeps what they held; waits until it is written."""
        async with self._engine.sequence() as one, self._engine.sequence() as other:
            for sequence in (one, other):
                await sequence.draft(self.tokens(SUFFIX), 1)
        if isinstance(self._store, LlamaCppKVCache):
            self._store.flush()
        drop_from_page_cache(folder)


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.rglob("*.kv"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@asynccontextmanager
async def cached(
    model: Path, threads: int, store: LlamaCppKVCache | AblatedKVCache, context: int
) -> AsyncIterator[Cached]:
    config = EdgeModelConfig(
        path=str(model), context_length=context, threads=threads, threads_batch=threads, sequences=2
    )
    async with EdgeEngine(config, store=store) as engine:
        yield Cached(engine, store, random.Random(1))


async def cached_first_token(
    model: Path | None = None, prefix: int = 1500, repeats: int = 5, threads: int = 1, bar: Progress | None = None
) -> list[RequiredRatio]:
    """The time to the first token from each place of the KV, over the cold time in the same repeat."""
    model, context = model or model_file(RANDOM_30M), prefix + 256
    seconds: dict[str, list[float]] = {place: [] for place in ("cold", *REQUIRED, "F3 off")}
    with tempfile.TemporaryDirectory() as plain, tempfile.TemporaryDirectory() as packed:
        disk = LlamaCppKVCache(ram_bytes=0, directory=plain)
        zstd = LlamaCppKVCache(ram_bytes=0, directory=packed, enable_compression=True)
        async with (
            cached(model, threads, LlamaCppKVCache(), context) as in_ram,
            cached(model, threads, disk, context) as on_disk,
            cached(model, threads, zstd, context) as compressed,
            cached(model, threads, AblatedKVCache(), context) as off,
        ):
            rounds = range(repeats + 1)
            for repeat in bar.track(rounds, description="interleaved repeats") if bar else rounds:
                beginning = in_ram.tokens(prefix)
                took = {"cold": await in_ram.first_token(beginning), "live": await in_ram.first_token(beginning)}
                took["live, in use"] = await in_ram.while_in_use(beginning)
                await in_ram.displace(Path(plain))
                took["RAM"] = await in_ram.first_token(beginning)
                for place, engine, folder in (("disk", on_disk, plain), ("disk, zstd", compressed, packed)):
                    await engine.first_token(beginning)
                    await engine.displace(Path(folder))
                    took[place] = await engine.first_token(beginning)
                await off.first_token(beginning)
                took["F3 off"] = await off.first_token(beginning)
                for place, spent in took.items() if repeat else ():  # the first is not counted: warm-up
                    seconds[place].append(spent)
    if bar:
        for place, each in seconds.items():
            bar.console.print(f"{place}: {statistics.median(each) * 1e3:.1f} ms to the first token")
    return comparisons(seconds)


def comparisons(seconds: dict[str, list[float]]) -> list[RequiredRatio]:
    def shares(place: str) -> list[float]:
        return [warm / cold for warm, cold in zip(seconds[place], seconds["cold"], strict=True)]

    cached = [
        RequiredRatio(f"first token, cached: {place}", limit, shares(place), at_most=True)
        for place, limit in REQUIRED.items()
    ]
    return [*cached, RequiredRatio("first token, F3 off", 0.90, shares("F3 off"))]


async def main() -> None:
    parser = config_parser("Compare the time to the first token of a prompt with a stored beginning with a cold one.")
    parser.add_argument(
        "--model",
        type=Path,
        help="GGUF file (default: the config's; in place of the demo's a random one of 30M parameters)",
    )
    parser.add_argument("--prefix", type=int, default=1500, help="tokens of the stored beginning (default 1500)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of llama.cpp (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all ratios to this file")
    args = parser.parse_args()
    console = terminal.console()
    with Progress(console=console) as bar:
        rows = await cached_first_token(args.model or edge_file(args), args.prefix, args.repeats, args.threads, bar)
    console.print(table(rows, "Time to the first token over the cold time of the same repeat"))
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    sys.exit(run_program(main()))
