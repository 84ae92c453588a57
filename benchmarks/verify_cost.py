"""One verify in plain decode steps of the same engine: resident, stateless, and with F3 off. Knows no HTTP and no edge.

python -m benchmarks.verify_cost [--draft 8] [--repeats 30]
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from vllm.sampling_params import RequestOutputKind

from cli import terminal
from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.round import VerifyRound, vllm_params
from common.types import Verdict
from models.demo import CLOUD as DEMO
from models.random_model import random_model

STEPS = 16
"""Plain decode steps timed in each repeat."""
CONTEXTS = (48, 208)
"""Half a block of 32 past what the prefix cache can hold, as is the mean."""
WAYS = ("resident", "stateless", "F3 off")

Verify = Callable[[VerifyRound], Awaitable[Verdict | None]]


@dataclass
class VerifyTimes:
    """One model and context: seconds over the repeats."""

    model: str
    context: int
    step: list[float] = field(default_factory=list)
    verify: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})


async def step_seconds(engine: CloudEngine, prompt: list[int]) -> float:
    """A plain decode step, as one client sees it: between the first token of an answer and its last."""
    params = vllm_params(VerifyRound(prompt, [], max_tokens=STEPS + 1), RequestOutputKind.DELTA, ignore_eos=True)
    async with aclosing(engine.generate(prompt, params)) as outputs:
        await anext(outputs)
        began, drawn = time.perf_counter(), 0
        async for output in outputs:
            drawn += len(output.outputs[0].token_ids)
    return (time.perf_counter() - began) / drawn


async def repeat(
    engine: CloudEngine, pool: ResidentPool, row: VerifyTimes, answer: list[int], draft: int, number: int
) -> None:
    """One of each, at the same place of the same answer; which of the three comes first changes."""
    committed, right = answer[: row.context], answer[row.context :][:draft]
    await pool.verify("s", VerifyRound(committed[:-1], []))  # what a session's earlier rounds have done
    row.step.append(await step_seconds(engine, committed))
    asked = VerifyRound(committed, right)
    ways: list[Verify] = [
        lambda asked: pool.verify("s", asked),
        lambda asked: stateless.verify(engine, asked),
        lambda asked: stateless.verify(engine, VerifyRound(asked.committed, asked.draft, use_kv_cache=False)),
    ]
    for at in range(len(WAYS)):
        at = (at + number) % len(WAYS)
        began = time.perf_counter()
        verdict = await ways[at](asked)
        row.verify[WAYS[at]].append(time.perf_counter() - began)
        assert verdict and verdict.accepted == draft
    await pool.close_session("s")


async def measure(model: Path, name: str, draft: int, repeats: int) -> list[VerifyTimes]:
    engine = CloudEngine(str(model), args={"dtype": "float32", "max_model_len": 1024})
    await engine.start()
    pool = ResidentPool(engine, 4, 60.0)
    text = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain quantum computing"}], tokenize=False, add_generation_prompt=True
    )
    prompt = list(engine.tokenizer.encode(text, add_special_tokens=False))
    rows = []
    try:
        for context in CONTEXTS:
            long = (prompt * context)[: context - 8]
            params = vllm_params(VerifyRound(long, [], max_tokens=8 + draft), ignore_eos=True)
            async with aclosing(engine.generate(long, params)) as outputs:
                answer = long + list((await anext(outputs)).outputs[0].token_ids)
            rows.append(VerifyTimes(name, context))
            for n in range(-5, repeats):  # the first five warm up
                await repeat(engine, pool, VerifyTimes(name, context) if n < 0 else rows[-1], answer, draft, n)
    finally:
        await pool.close()
        await engine.close()
    return rows


def table(rows: list[VerifyTimes], draft: int) -> Table:
    made = Table(
        title=f"One verify of {draft} tokens, all accepted, in plain decode steps: medians, interleaved, float32",
        title_justify="left",
    )
    made.add_column("model", no_wrap=True)
    for name in ("context", "step, ms", *(f"{way}, {unit}" for way in WAYS for unit in ("ms", "steps"))):
        made.add_column(name, justify="right")
    for row in rows:
        step = statistics.median(row.step)
        verifies = [statistics.median(row.verify[way]) for way in WAYS]
        cells = [cell for verify in verifies for cell in (f"{verify * 1000:.1f}", f"{verify / step:.2f}")]
        made.add_row(row.model, str(row.context), f"{step * 1000:.1f}", *cells)
    return made


async def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what one verify costs the cloud.")
    parser.add_argument("--draft", type=int, default=8, help="tokens drafted (default 8)")
    parser.add_argument("--repeats", type=int, default=30, help="verifies of each kind and context (default 30)")
    args = parser.parse_args()
    console = terminal.console()
    rows = await measure(DEMO, "demo-cloud", args.draft, args.repeats)
    with random_model() as folder:
        rows += await measure(folder, "random 28M", args.draft, args.repeats)
    console.print(table(rows, args.draft))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
