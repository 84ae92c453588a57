"""Sampled answers: how often drafts of each kind are accepted, and the tokens per second that this comes to.

python -m benchmarks.policy.sampled FILE [--times TRACES] [--round-trip MS] [--copies 3]
python -m benchmarks.policy.sampled FILE --record --cloud FILE.gguf --edge FILE.gguf [--humaneval FILE] [--prompts 10]

With --record, the cloud's model answers prompts of three kinds of text under each sampling, and FILE keeps how likely
each draft token would have been accepted; what FILE has already is not recorded again. Without, the pipeline answers
them in virtual time with the times of the pair in TRACES: by its policy, and with drafts of each fixed length.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from benchmarks.policy import sampled_answers, trace
from benchmarks.policy.regret import LOSSLESS, fixed_plans, settled
from benchmarks.policy.replay import ReplayedTime, replay
from benchmarks.policy.sampled_answers import SampledAnswer, SampledPair
from benchmarks.policy.sampling import KINDS
from benchmarks.policy.trace import PairTimes
from cli import terminal
from cli.args import count, plain_parser, run_sync_program
from common.protocol.openai import Message
from common.types import Sampling
from edge.text.chat_template import ChatTemplate
from experiments.questions import datasets

SAMPLINGS = (
    Sampling(temperature=0.7),
    Sampling(temperature=0.8),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.8, top_k=20),
)
TIMES = Path("tests/benchmarks/traces/qwen2.5-coder.jsonl")
GREEDY = "greedy"
"""The kind of draft that the others are compared with."""
RESAMPLES = 2000

Seconds = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    parser = plain_parser("Compare kinds of drafts where answers are sampled.")
    parser.add_argument("file", type=Path, help="the answers, JSON lines")
    parser.add_argument("--record", action="store_true", help="first record answers that the file has not")
    parser.add_argument("--cloud", type=Path, help="with --record: the GGUF file that answers")
    parser.add_argument("--edge", type=Path, help="with --record: the GGUF file that drafts")
    parser.add_argument("--humaneval", default="humaneval", help="with --record: the data set of code, see experiments")
    parser.add_argument("--prompts", type=count, default=10, help="with --record: of each kind of text (default 10)")
    parser.add_argument("--tokens", type=count, default=48, help="with --record: longest answer (default 48)")
    parser.add_argument("--times", type=Path, default=TIMES, help=f"a recorded pair, for its times (default {TIMES})")
    parser.add_argument("--round-trip", type=float, default=0.0, help="in milliseconds (default 0)")
    parser.add_argument("--copies", type=count, default=3, help="replays of each answer (default 3)")
    return parser.parse_args()


def record(args: argparse.Namespace) -> None:
    """Adds to the file what it has not; it is complete after each prompt."""
    prose = [one.prompt for one in datasets.load(datasets.GENERAL, 40, seed=0).questions if one.kind == "prose"]
    code, edits = (
        [one.prompt for one in datasets.load(spec, args.prompts, seed=0).questions]
        for spec in (args.humaneval, datasets.EDITING)
    )
    done = {(one.kind, one.number) for one in sampled_answers.read(args.file)} if args.file.exists() else set()
    pair = SampledPair(args.cloud, args.edge, SAMPLINGS)
    for number in range(args.prompts):
        for kind, texts in (("code", code), ("prose", prose), ("edit", edits)):
            if number >= len(texts) or (kind, number) in done:
                continue
            found = list(pair.answers(kind, number, asyncio.run(written(pair, texts[number])), args.tokens))
            with args.file.open("ab") as file:
                file.write(msgspec.json.Encoder().encode_lines(found))
            print(kind, number, *(f"{one.acceptance['greedy']:.2f} {one.acceptance['drawn']:.2f}" for one in found))


async def written(pair: SampledPair, text: str) -> list[int]:
    """One user turn in the model's chat template, as token ids."""
    vocabulary = pair.cloud.vocabulary
    async with ChatTemplate(vocabulary.meta("tokenizer.chat_template") or "", vocabulary.bos, vocabulary.eos) as chat:
        prompt = await chat.render([Message(role="user", content=text)])
    return vocabulary.tokenize(prompt.encode(), add_special=False, parse_special=True)


class Speeds(NamedTuple):
    """Seconds of each prompt's answers, [N]: as the policy chooses, and with the best fixed mode and length."""

    policy: Seconds
    fixed: Seconds
    best: str


def speeds(answers: Sequence[SampledAnswer], times: PairTimes, round_trip: float, copies: int) -> dict[str, Speeds]:
    """By kind of draft, for the answers to one kind of text under one sampling."""

    def seconds(replayed: Sequence[ReplayedTime]) -> Seconds:
        return np.asarray(np.array([one.seconds for one in replayed]).reshape(copies, -1).sum(axis=0))

    found = {}
    for draft in KINDS:
        traces = [answer.trace(draft, copy) for copy in range(copies) for answer in answers]
        fixed = {name: seconds(replay(traces, times, round_trip, plan)) for name, plan in fixed_plans().items()}
        best = min(fixed, key=lambda name: float(fixed[name].sum()))
        found[draft] = Speeds(seconds(settled(traces, times, round_trip, LOSSLESS)), fixed[best], best)
    return found


def ratio(one: Seconds, other: Seconds) -> str:
    """How many times as fast as `one` is `other`, with 90 % of what other prompts would have shown."""
    prompts = np.random.default_rng(0).integers(len(one), size=(RESAMPLES, len(one)))
    low, high = np.quantile(one[prompts].sum(axis=1) / other[prompts].sum(axis=1), [0.05, 0.95])
    return f"{one.sum() / other.sum():.2f} ({low:.2f}-{high:.2f})"


def described(sampling: Sampling) -> str:
    filters = [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1) + [f"top-k {sampling.top_k}"] * (sampling.top_k > 0)
    return ", ".join([f"{sampling.temperature:g}", *filters])


def show(args: argparse.Namespace) -> None:
    """Replays the file and prints the two tables."""
    if args.record:
        record(args)
    times, _ = trace.read(args.times)
    accepted = _table("Draft tokens accepted", ["text", "temperature", "answers", *KINDS])
    others = [f"{how}, {draft}" for how in ("policy", "fixed") for draft in KINDS if draft != GREEDY]
    faster = _table("Times as fast as greedy drafts", ["text", "temperature", "tokens/s", "best fixed", *others])
    answers = sorted(sampled_answers.read(args.file), key=_group)
    for (text, sampling), group in ((key, list(found)) for key, found in groupby(answers, key=_group)):
        means = [statistics.mean(answer.acceptance[draft] for answer in group) for draft in KINDS]
        accepted.add_row(text, sampling, str(len(group)), *(f"{mean:.3f}" for mean in means))
        found = speeds(group, times, args.round_trip / 1e3, args.copies)
        tokens, base = args.copies * sum(len(answer.confidences) for answer in group), found[GREEDY]
        policy = [ratio(base.policy, speed.policy) for draft, speed in found.items() if draft != GREEDY]
        fixed = [ratio(base.fixed, speed.fixed) for draft, speed in found.items() if draft != GREEDY]
        pace = f"{tokens / base.policy.sum():.1f}, {tokens / base.fixed.sum():.1f}"
        faster.add_row(text, sampling, pace, base.best, *policy, *fixed)
    console = terminal.console()
    console.print(accepted, faster)


def _group(answer: SampledAnswer) -> tuple[str, str]:
    return answer.kind, described(answer.sampling)


def _table(title: str, heads: Sequence[str]) -> Table:
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in heads:
        result.add_column(head)
    return result


if __name__ == "__main__":
    sys.exit(run_sync_program(lambda: show(arguments())))
