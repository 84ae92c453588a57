"""F3 on the edge: time to the first token of a prompt whose beginning is known, against computing all of it.

python -m benchmarks.edge_cache [--prefix 1500] [--repeats 5] [--threads 1] [--model FILE.gguf] [--json FILE]

Every repeat goes through all the ways with a beginning that was never seen before. Files are dropped from the page
cache before they are read, as far as the system lets us.
"""

import argparse
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

from benchmarks.edge_speed import RequiredRatio, model_file, table
from benchmarks.random_model import LlamaShape
from cli import terminal
from cli.args import run_program
from common.config_schema import EdgeModelConfig
from edge.engine.engine import EdgeEngine
from edge.kv_cache import AblatedKVCache, LlamaCppKVCache

RANDOM_30M = LlamaShape("random-30m", 4096, 512, 8, 8, 8, 1536)
"""30M parameters and, without grouped heads, 16 KiB of KV a token: much to bring back for little computing."""
SUFFIX = 32
"""Tokens of a prompt after its known beginning."""
WANTED = {"live": 0.10, "live, in use": 0.10, "RAM": 0.15, "disk": 0.30, "disk, zstd": 0.30}


class Cached:
    """An engine with its own prefix store, and prompts that begin alike."""

    def __init__(self, engine: EdgeEngine, store: LlamaCppKVCache | AblatedKVCache, source: random.Random) -> None:
        self._engine, self._store, self._source = engine, store, source

    def tokens(self, count: int) -> list[int]:
        return [self._source.randrange(100, 4000) for _ in range(count)]

    async def first_token(self, beginning: list[int]) -> float:
        """Seconds from asking for a sequence to the first token after `beginning` and a few new tokens."""
        prompt = beginning + self.tokens(SUFFIX)
        began = time.perf_counter()
        async with self._engine.sequence(prompt) as sequence:
            await sequence.draft(prompt, 1)
            return time.perf_counter() - began

    async def while_in_use(self, beginning: list[int]) -> float:
        """The same, while the sequence that holds the beginning belongs to somebody else."""
        async with self._engine.sequence(beginning) as holder:
            await holder.draft(beginning, 1)
            return await self.first_token(beginning)

    async def displace(self, folder: Path) -> None:
        """Has every sequence hold something else, and what they held kept as it is to be kept."""
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
    config = EdgeModelConfig(path=str(model), context_length=context, threads=threads, sequences=2)
    async with EdgeEngine(config, store=store) as engine:
        yield Cached(engine, store, random.Random(1))


async def cached_first_token(
    model: Path | None = None, prefix: int = 1500, repeats: int = 5, threads: int = 1, bar: Progress | None = None
) -> list[RequiredRatio]:
    """Every way's time to the first token, as shares of the cold time in the same repeat."""
    model, context = model or model_file(RANDOM_30M), prefix + 256
    seconds: dict[str, list[float]] = {way: [] for way in ("cold", *WANTED, "F3 off")}
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
                for way, engine, folder in (("disk", on_disk, plain), ("disk, zstd", compressed, packed)):
                    await engine.first_token(beginning)
                    await engine.displace(Path(folder))
                    took[way] = await engine.first_token(beginning)
                await off.first_token(beginning)
                took["F3 off"] = await off.first_token(beginning)
                for way, one in took.items() if repeat else ():  # the first is a warm-up
                    seconds[way].append(one)
    if bar:
        for way, each in seconds.items():
            bar.console.print(f"{way}: {statistics.median(each) * 1e3:.1f} ms to the first token")
    return comparisons(seconds)


def comparisons(seconds: dict[str, list[float]]) -> list[RequiredRatio]:
    def shares(way: str) -> list[float]:
        return [warm / cold for warm, cold in zip(seconds[way], seconds["cold"], strict=True)]

    made = [
        RequiredRatio(f"first token, cached: {way}", most, shares(way), at_most=True) for way, most in WANTED.items()
    ]
    return [*made, RequiredRatio("first token, F3 off", 0.90, shares("F3 off"))]


async def main() -> None:
    parser = argparse.ArgumentParser(description="What a known beginning of a prompt saves, as shares of computing it.")
    parser.add_argument("--model", type=Path, help="GGUF file (default: a random one of 30M parameters)")
    parser.add_argument("--prefix", type=int, default=1500, help="tokens of the known beginning (default 1500)")
    parser.add_argument("--repeats", type=int, default=5, help="times that everything is measured (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="llama.cpp's threads (default 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_args()
    console = terminal.console()
    with Progress(console=console) as bar:
        rows = await cached_first_token(args.model, args.prefix, args.repeats, args.threads, bar)
    console.print(table(rows))
    if args.json:
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))


if __name__ == "__main__":
    sys.exit(run_program(main()))
