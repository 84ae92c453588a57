"""Measures the time of one verification round on the cloud's engine, in plain decode steps of the same engine.

python -m benchmarks.verify_cost [--config FILE] [--set KEY=VALUE] [--draft 8] [--repeats 30]

Each repeat times 16 plain decode steps and then the same round three times, in rotating order: with a resident request,
stateless, and with F3 off. "steps" is a round's median time over the median time of a plain decode step: 1 means that a
whole draft is verified in the time of one token. Measured are the config's cloud model or, in place of the demo's, that
and a random one of 28M parameters; in float32 unless `--set cloud.model.dtype` says otherwise.
"""

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace
from rich.table import Table
from vllm.sampling_params import RequestOutputKind

from benchmarks.setup.pair import cloud_model
from cli import terminal
from cli.args import config_parser, run_program
from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.resident_pool import ResidentPool
from cloud.verify.round import VerifyRound, vllm_params
from common.config_cloud import CloudModelConfig
from common.types import Verdict
from models.demo import CLOUD as DEMO
from models.random_model import random_model

STEPS = 16
"""Plain decode steps timed in each repeat."""
CONTEXTS = (48, 208)
"""Tokens before the draft: 16 past a whole number of the prefix cache's blocks of 32, the mean remainder."""
KINDS = ("resident", "stateless", "F3 off")


@dataclass
class VerifyTimes:
    """Seconds of decode steps and of rounds, over the repeats, for one model and context."""

    model: str
    context: int
    step: list[float] = field(default_factory=list)
    verify: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


async def step_seconds(engine: CloudEngine, prompt: list[int]) -> float:
    """Seconds of a plain decode step: from the first token of an answer to its last, over the tokens between."""
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
    """Times decode steps and one round of each kind at the same position of the same answer, in rotating order."""
    committed, right = answer[: row.context], answer[row.context :][:draft]
    await pool.verify("s", VerifyRound(committed[:-1], []))  # leaves what a session's earlier rounds would
    row.step.append(await step_seconds(engine, committed))
    round = VerifyRound(committed, right)
    verifiers: list[Callable[[], Awaitable[Verdict | None]]] = [
        lambda: pool.verify("s", round),
        lambda: stateless.verify(engine, round),
        lambda: stateless.verify(engine, VerifyRound(round.committed, round.draft, use_kv_cache=False)),
    ]
    for n in range(len(KINDS)):
        at = (n + number) % len(KINDS)
        began = time.perf_counter()
        verdict = await verifiers[at]()
        row.verify[KINDS[at]].append(time.perf_counter() - began)
        assert verdict and verdict.accepted == draft
    await pool.close_session("s")


async def measure(model: CloudModelConfig, name: str, draft: int, repeats: int) -> list[VerifyTimes]:
    """One row for each context; starts and ends an engine of its own."""
    engine = CloudEngine(model.path, args={"dtype": model.dtype, "max_model_len": model.context_length})
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


def table(rows: list[VerifyTimes], draft: int, dtype: str) -> Table:
    result = Table(
        title=f"Verification of {draft} draft tokens, all accepted, {dtype}: medians in ms and in plain decode steps",
        title_justify="left",
    )
    result.add_column("model", no_wrap=True)
    for name in ("context", "decode step, ms", *(f"{kind}, {unit}" for kind in KINDS for unit in ("ms", "steps"))):
        result.add_column(name, justify="right")
    for row in rows:
        step = statistics.median(row.step)
        rounds = [statistics.median(row.verify[kind]) for kind in KINDS]
        cells = [cell for seconds in rounds for cell in (f"{seconds * 1000:.1f}", f"{seconds / step:.2f}")]
        result.add_row(row.model, str(row.context), f"{step * 1000:.1f}", *cells)
    return result


async def main() -> None:
    parser = config_parser("Measure the time of one verification round on the cloud's engine.")
    parser.add_argument("--draft", type=int, default=8, help="tokens of each draft (default 8)")
    parser.add_argument("--repeats", type=int, default=30, help="rounds of each kind at each context (default 30)")
    args = parser.parse_args()
    console = terminal.console()
    if model := cloud_model(args):
        rows = await measure(model, Path(model.path).name, args.draft, args.repeats)
        console.print(table(rows, args.draft, model.dtype))
        return
    demo = CloudModelConfig(path=str(DEMO), dtype="float32")
    rows = await measure(demo, "demo-cloud", args.draft, args.repeats)
    with random_model() as folder:
        rows += await measure(replace(demo, path=str(folder)), "random 28M", args.draft, args.repeats)
    console.print(table(rows, args.draft, demo.dtype))


if __name__ == "__main__":
    sys.exit(run_program(main()))
