"""Checks that lossless answers, and those of a split model without exits, are those of the cloud's model.

python -m experiments.exactness [--kinds rounds,continuous,fp32,...] [--questions 200] [--clients 8] [--output DIR]

The model in vLLM alone, and each kind, answer the same questions greedily. Kinds are the verification modes of a pair
of models, and the encodings of hidden states of a split model with thresholds above 1. Where two answers differ, the
cloud gives the log probabilities of both tokens at the first difference: rounding can decide a near-tie either way.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from calibration.split.levels import NEVER
from cli import terminal
from cli.args import config_parser, run_program
from common.config_schema import HttpClientConfig
from common.enums import VerificationMode
from common.errors import ConfigError
from common.http.client import HTTPClient
from common.protocol.prefix_hash import common_prefix
from common.types import Mode, StateEncoding
from experiments.harness import experiment
from experiments.harness.load import in_turns
from experiments.harness.options import OUTPUT_HELP
from experiments.harness.progress import progress
from experiments.harness.servers import EdgeSite, fleet
from experiments.questions import datasets
from experiments.questions.workload import Question
from experiments.report.document import ReportFiles
from experiments.setup.ablations import CLOUD_ONLY, Ablation
from experiments.setup.configurations import Configuration, configuration
from experiments.split import variants

PAIR_SETTINGS = ("inference.fallback=false", "communication.http_client.idle_timeout=120")
"""A lost cloud is an error, and a machine that is busy with everything else is no lost cloud."""
SPLIT_SETTINGS = (*PAIR_SETTINGS, *variants.SETTINGS, "edge.model.kv_type=f32")
"""Only the hidden states in transit are rounded."""
MODES = tuple(mode.value for mode in VerificationMode if mode is not VerificationMode.AUTO)
CLIENT = HttpClientConfig(timeout=600.0, max_retries=0, connection_pool_size=100)
ALONE = CLOUD_ONLY.name


class Divergence(Struct, kw_only=True):
    """The first difference of an answer from the cloud's alone, with both tokens' texts.

    `gap`: the cloud's log probability (natural) of its token minus that of the other one. It is null where the
    answers differ only in length, or a token is not among the 20 most likely.
    """

    question: str
    position: int
    alone: str
    other: str
    gap: float | None


class ExactnessResult(Struct, kw_only=True):
    """The comparison for one kind. `tokens` and `bytes_up` are sums over all answers; bytes are frames up."""

    kind: str
    answers: int
    tokens: int
    bytes_up: int
    differences: list[Divergence]

    @property
    def largest_gap(self) -> float | None:
        gaps = [one.gap for one in self.differences if one.gap is not None]
        return max(gaps) if gaps else None


class ReplayedAnswer(Struct):
    """One answer by its tokens."""

    token_ids: list[int]
    texts: list[str]
    bytes_up: int


async def main() -> None:
    parser = config_parser(__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        metavar="FILE|NAME",
        help="questions (experiments/questions/datasets.py; default: held-out ones; for other "
        "models than the demo's: general)",
    )
    parser.add_argument("--questions", type=int, default=200, help="largest number of questions (default %(default)s)")
    parser.add_argument(
        "--kinds",
        default=",".join(StateEncoding),
        metavar="NAMES",
        help=f"{', '.join(MODES)} for a pair; encodings of hidden states (default %(default)s) for a split model",
    )
    parser.add_argument("--clients", type=int, default=8, help="concurrent clients (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens of the longest answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of questions (default %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("logs/exactness"),
        metavar="DIR",
        help=f"{OUTPUT_HELP} (default %(default)s)",
    )
    args, console = parser.parse_args(), terminal.console()
    kinds = kinds_of(args.kinds)
    data = datasets.spec_for(args.data, experiment.base_config(args, settings_of(kinds)))
    questions = datasets.load(data, args.questions, args.seed).questions
    results = await measure(args, questions, kinds, console)
    show(results, console)
    files = ReportFiles.at(args.output, "exactness")
    files.folder.mkdir(parents=True, exist_ok=True)
    path = files.file("json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
    console.print(f"written: {path}")


def kinds_of(names: str) -> list[Ablation]:
    """What is compared with the cloud alone, by the comma-separated names; raises ConfigError for an unknown one."""
    found = []
    for name in names.split(","):
        if name in MODES:
            lossless = {"use_confidence_check": False, "way": name}
            found.append(Ablation(name=name, description="lossless, in this verification mode", fields=lossless))
        elif name in tuple(StateEncoding):
            found.append(variants.split(NEVER, name, transfer=name))
        else:
            raise ConfigError(f"--kinds: {name!r} is none of {', '.join([*MODES, *StateEncoding])}")
    return found


def settings_of(kinds: Sequence[Ablation]) -> tuple[str, ...]:
    """The settings that all servers share."""
    return SPLIT_SETTINGS if any(kind.mode is Mode.SPLIT for kind in kinds) else PAIR_SETTINGS


async def measure(
    args: Namespace, questions: Sequence[Question], kinds: Sequence[Ablation], console: Console
) -> list[ExactnessResult]:
    """Asks the cloud alone, then each kind; starts and ends the servers."""
    settings = settings_of(kinds)
    base = experiment.base_config(args, settings)
    configurations = [configuration(ablation, base) for ablation in (CLOUD_ONLY, *kinds)]
    async with fleet(args, settings, [one.needs for one in configurations], console.print) as sites:
        with progress(console) as bar:
            task = bar.add_task("", total=len(configurations) * len(questions))
            answers = {}
            for one in configurations:
                bar.update(task, description=one.name)
                answers[one.name] = await answers_of(sites[one.needs], one, questions, args, lambda: bar.advance(task))
        async with HTTPClient(sites[configurations[0].needs].cloud_url, CLIENT) as cloud:
            alone = answers[ALONE]
            return [
                ExactnessResult(
                    kind=kind.name,
                    answers=len(questions),
                    tokens=sum(len(answer.token_ids) for answer in answers[kind.name]),
                    bytes_up=sum(answer.bytes_up for answer in answers[kind.name]),
                    differences=[
                        await divergence(cloud, sites[configurations[0].needs].edge_url, question, one, other)
                        for question, one, other in zip(questions, alone, answers[kind.name], strict=True)
                        if one.token_ids != other.token_ids
                    ],
                )
                for kind in kinds
            ]


async def answers_of(
    site: EdgeSite,
    configuration: Configuration,
    questions: Sequence[Question],
    args: Namespace,
    on_answer: Callable[[], None],
) -> list[ReplayedAnswer]:
    """The configuration's answers to all questions, in their order; calls `on_answer` after each."""
    async with HTTPClient(site.edge_url, CLIENT) as edge:

        async def one(number: int) -> ReplayedAnswer:
            body = {
                "messages": [{"role": "user", "content": questions[number].prompt}],
                "max_tokens": args.max_tokens,
                "temperature": 0,
                "collaboration": {"tokens": True},
                **configuration.fields,
            }
            reply = await edge.post("/v1/chat/completions", body, dict[str, Any])
            on_answer()
            tokens = reply["choices"][0]["collaboration"]["tokens"]
            return ReplayedAnswer(
                [token["token_id"] for token in tokens],
                [token["text"] for token in tokens],
                reply["collaboration"]["bytes_up"],
            )

        return await in_turns(args.clients, one, range(len(questions)))


async def divergence(
    cloud: HTTPClient, edge_url: str, question: Question, alone: ReplayedAnswer, different: ReplayedAnswer
) -> Divergence:
    """The first difference of two answers, with the cloud's log probabilities after their common prefix."""
    at = common_prefix(alone.token_ids, different.token_ids)
    one, other = ((a.texts[at], a.token_ids[at]) if at < len(a.token_ids) else ("", None) for a in (alone, different))
    gap = None
    if one[1] is not None and other[1] is not None:
        async with HTTPClient(edge_url, CLIENT) as edge:
            messages = [{"role": "user", "content": question.prompt}]
            prompt = await edge.post("/tokenize", {"messages": messages}, dict[str, Any])
        body = {"prompt": [*prompt["tokens"], *alone.token_ids[:at]], "max_tokens": 1, "temperature": 0, "logprobs": 20}
        reply = await cloud.post("/v1/completions", {**body, "return_tokens_as_token_ids": True}, dict[str, Any])
        most_likely = reply["choices"][0]["logprobs"]["top_logprobs"][0]
        both = [most_likely.get(f"token_id:{token}") for token in (one[1], other[1])]
        gap = None if None in both else both[0] - both[1]
    return Divergence(question=question.prompt, position=at, alone=one[0], other=other[0], gap=gap)


def show(results: Sequence[ExactnessResult], console: Console) -> None:
    """Prints a row for each kind, then every difference."""
    table = Table(title="Greedy answers against the cloud's alone", title_justify="left")
    for head in ("kind", "answers", "tokens", "bytes up", "answers that differ", "share", "largest gap"):
        table.add_column(head, justify="right")
    for one in results:
        different = len(one.differences)
        gap = "–" if one.largest_gap is None else f"{one.largest_gap:.4f}"
        share = f"{different / one.answers:.1%}"
        table.add_row(one.kind, str(one.answers), str(one.tokens), f"{one.bytes_up:,}", str(different), share, gap)
    console.print(table)
    for one in results:
        for each in one.differences:
            gap = "unknown" if each.gap is None else f"{each.gap:.4f}"
            tokens = f"{each.alone!r} by the cloud alone, {each.other!r} here"
            console.print(f"{one.kind}: {each.question!r}, token {each.position + 1}: {tokens}, gap {gap}")


if __name__ == "__main__":
    sys.exit(run_program(main()))
