"""Sampled answers: how often drafts of each kind are accepted, and the tokens per second that this comes to.

python -m benchmarks.policy.sampled FILE [--times TRACES] [--round-trip MS]
python -m benchmarks.policy.sampled FILE --record --cloud FILE.gguf --edge FILE.gguf [--prompts 10]

With --record, the cloud's model answers prompts of three kinds of text under each sampling, and FILE keeps how likely
each draft token would have been accepted; what FILE has already is not recorded again. Then the expected time of these
answers in rounds is computed, with the times of the pair in TRACES: with drafts of the best fixed length in hindsight,
and with drafts that stop where their confidence is low, at the best place in hindsight.
"""

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from benchmarks.policy import sampled_answers, trace
from benchmarks.policy.sampled_answers import SampledAnswer, SampledPair
from benchmarks.policy.sampling import KINDS
from benchmarks.policy.trace import AnswerTrace, PairTimes
from cli import terminal
from cli.args import amount, count, plain_parser, run_sync_program
from common.protocol.openai import Message
from common.types import Sampling
from edge.text.chat_template import ChatTemplate
from experiments.questions import editing, general

SAMPLINGS = (
    Sampling(temperature=0.7),
    Sampling(temperature=0.8),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.8, top_k=20),
)
KINDS_OF_TEXT = {"code": general.CODE, "prose": general.PROSE, "edit": editing.prompts()}
TIMES = Path("tests/benchmarks/traces/qwen2.5-coder.jsonl")
GREEDY = "greedy"
"""The kind of draft that the others are compared with."""
LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16)
BELOW = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
RESAMPLES = 2000

Seconds = NDArray[np.float64]


def arguments() -> argparse.Namespace:
    parser = plain_parser("Compare kinds of drafts where answers are sampled.")
    parser.add_argument("file", type=Path, help="the answers, JSON lines")
    parser.add_argument("--record", action="store_true", help="first record answers that the file has not")
    parser.add_argument("--cloud", type=Path, help="with --record: the GGUF file that answers")
    parser.add_argument("--edge", type=Path, help="with --record: the GGUF file that drafts")
    parser.add_argument("--prompts", type=count, default=10, help="with --record: of each kind of text (default 10)")
    parser.add_argument("--tokens", type=count, default=32, help="with --record: longest answer (default 32)")
    parser.add_argument("--times", type=Path, default=TIMES, help=f"a recorded pair, for its times (default {TIMES})")
    parser.add_argument("--round-trip", type=amount, default=0.0, help="in milliseconds (default 0)")
    return parser.parse_args()


def record(args: argparse.Namespace) -> None:
    """Adds to the file what it has not; it is complete after each prompt."""
    done = {(one.kind, one.number) for one in sampled_answers.read(args.file)} if args.file.exists() else set()
    pair = SampledPair(args.cloud, args.edge, SAMPLINGS)
    for number in range(args.prompts):
        for kind, texts in KINDS_OF_TEXT.items():
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


def traces(file: Path) -> list[AnswerTrace]:
    """The answers of a file as their drafts are now, greedy; one kind for each text and sampling."""
    return [one.trace(f"{one.kind}, {described(one.sampling)}") for one in sampled_answers.read(file)]


class Speeds(NamedTuple):
    """Expected seconds of each answer, [N], in rounds of the best fixed length and with the best end, in hindsight."""

    fixed: Seconds
    length: int
    stopping: Seconds


def speeds(answers: Sequence[SampledAnswer], times: PairTimes, round_trip: float) -> dict[str, Speeds]:
    """By kind of draft, for the answers to one kind of text under one sampling."""
    fixed = {length: [[length] * len(answer.confidences) for answer in answers] for length in LENGTHS}
    stopping = [[answer.stopping(below) for answer in answers] for below in BELOW]
    found = {}
    for draft in KINDS:

        def seconds(lengths: Sequence[Sequence[int]], draft: str = draft) -> Seconds:
            pairs = zip(answers, lengths, strict=True)
            return np.array([answer.seconds(draft, own, times, round_trip) for answer, own in pairs])

        of_length = {length: seconds(lengths) for length, lengths in fixed.items()}
        best = min(of_length, key=lambda length: float(of_length[length].sum()))
        found[draft] = Speeds(of_length[best], best, min(map(seconds, stopping), key=lambda one: float(one.sum())))
    return found


def ratio(one: Seconds, other: Seconds) -> str:
    """How many times as fast as `one` is `other`; in brackets what 90 % of other samples of prompts would show."""
    prompts = np.random.default_rng(0).integers(len(one), size=(RESAMPLES, len(one)))
    low, high = np.quantile(one[prompts].sum(axis=1) / other[prompts].sum(axis=1), [0.05, 0.95])
    return f"{one.sum() / other.sum():.2f} ({low:.2f}-{high:.2f})"


def described(sampling: Sampling) -> str:
    filters = [f"top-p {sampling.top_p:g}"] * (sampling.top_p < 1) + [f"top-k {sampling.top_k}"] * (sampling.top_k > 0)
    return ", ".join([f"{sampling.temperature:g}", *filters])


def show(args: argparse.Namespace) -> None:
    """Prints the two tables, for the answers that the file has."""
    if args.record:
        record(args)
    times, _ = trace.read(args.times)
    accepted = _table("Draft tokens accepted", ["text", "temperature", "tokens", *KINDS])
    others = [draft for draft in KINDS if draft != GREEDY]
    faster = _table("Times as fast as greedy drafts", ["text", "temperature", "greedy, tokens/s", "drafts", *others])
    for (text, sampling), group in groups(sampled_answers.read(args.file)):
        weights = [len(answer.confidences) for answer in group]
        means = [np.average([answer.acceptance[draft] for answer in group], weights=weights) for draft in KINDS]
        accepted.add_row(text, sampling, str(sum(weights)), *(f"{mean:.3f}" for mean in means))
        found = speeds(group, times, args.round_trip / 1e3)
        base = found[GREEDY]
        fixed = [ratio(base.fixed, found[draft].fixed) for draft in others]
        stopping = [ratio(base.stopping, found[draft].stopping) for draft in others]
        faster.add_row(text, sampling, f"{sum(weights) / base.fixed.sum():.1f}", f"of {base.length}", *fixed)
        faster.add_row("", "", f"{sum(weights) / base.stopping.sum():.1f}", "that stop", *stopping)
    console = terminal.console()
    console.print(accepted, faster)


def groups(answers: Sequence[SampledAnswer]) -> list[tuple[tuple[str, str], list[SampledAnswer]]]:
    """The answers by kind of text, and all together, each by sampling."""
    found = defaultdict[tuple[str, str], list[SampledAnswer]](list)
    for answer in answers:
        for text in (answer.kind, "all"):
            found[text, described(answer.sampling)].append(answer)
    return sorted(found.items(), key=lambda group: group[0])


def _table(title: str, heads: Sequence[str]) -> Table:
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for head in heads:
        result.add_column(head)
    return result


if __name__ == "__main__":
    sys.exit(run_sync_program(lambda: show(arguments())))
