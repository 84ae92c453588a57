"""Whether a split model answers as the whole one does when no exit is taken: python -m experiments.exactness [options]

The same held-out questions are asked of the whole model in vLLM and of its pieces with thresholds above 1, greedily,
once for each form in which hidden states travel. Where two answers part, the whole model is asked how far apart its two
tokens are there: a near-tie may fall to either side when numbers are rounded otherwise.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from cli import terminal
from cli.args import config_parser, run_program
from common.config_schema import HttpClientConfig
from common.http.client import HTTPClient
from common.protocol.prefix_hash import common_prefix
from common.types import StateEncoding
from experiments.harness import experiment
from experiments.harness.load import in_turns
from experiments.harness.progress import progress
from experiments.harness.servers import EdgeSite, fleet
from experiments.questions import datasets
from experiments.questions.workload import Question
from experiments.setup.ablations import CLOUD_ONLY
from experiments.setup.configurations import Configuration, Needs, configuration
from experiments.split import compared

SETTINGS = (*compared.SETTINGS, "edge.model.kv_type=f32")
"""Nothing is rounded but the states on their way."""
NEVER = 1.01
CLIENT = HttpClientConfig(timeout=120.0, max_retries=0, connection_pool_size=100)
WHOLE = CLOUD_ONLY.name


class Divergence(Struct, kw_only=True):
    """Where an answer leaves the whole model's. `gap`: natural log probability by which the whole model's is likelier.

    `gap` is null where the two differ in length alone or one of the tokens is not among the likeliest 20.
    """

    question: str
    position: int
    whole: str
    split: str
    gap: float | None


class ExactnessResult(Struct, kw_only=True):
    """`tokens`: of all answers; `bytes_up`: of hidden states and questions, in all."""

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
    token_ids: list[int]
    texts: list[str]
    bytes_up: int


async def main() -> None:
    parser = config_parser(__doc__.partition("\n")[0])
    parser.add_argument(
        "--data", metavar="FILE|NAME", help="questions (experiments/questions/datasets.py; default: held-out ones)"
    )
    parser.add_argument("--questions", type=int, default=200, help="how many at most (default %(default)s)")
    parser.add_argument("--kinds", default=",".join(StateEncoding), help="how states travel (default %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="questions at once (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses questions (default %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("logs/exactness"), metavar="DIR", help="folder for a report"
    )
    args, console = parser.parse_args(), terminal.console()
    asked = datasets.load(args.data, args.questions, args.seed).questions
    found = await measure(args, asked, [StateEncoding(kind) for kind in args.kinds.split(",")], console)
    show(found, console)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "exactness.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    console.print(f"written: {path}")


async def measure(
    args: Namespace, asked: Sequence[Question], kinds: Sequence[StateEncoding], console: Console
) -> list[ExactnessResult]:
    """Asks everything of the whole model, then of its pieces; servers live as long as this."""
    base = experiment.base_config(args, SETTINGS)
    ways = [CLOUD_ONLY, *(compared.split(NEVER, kind.value, transfer=kind.value) for kind in kinds)]
    made = [configuration(way, base) for way in ways]
    async with fleet(args, SETTINGS, [one.needs for one in made], console.print) as places:
        with progress(console) as bar:
            task = bar.add_task("", total=len(made) * len(asked))
            answers = {}
            for one in made:
                bar.update(task, description=one.name)
                answers[one.name] = await answers_of(places, one, asked, args, lambda: bar.advance(task))
        async with HTTPClient(places[made[0].needs].cloud_url, CLIENT) as cloud:
            whole = answers[WHOLE]
            return [
                ExactnessResult(
                    kind=kind.value,
                    answers=len(asked),
                    tokens=sum(len(answer.token_ids) for answer in answers[kind.value]),
                    bytes_up=sum(answer.bytes_up for answer in answers[kind.value]),
                    differences=[
                        await difference(cloud, places[made[0].needs].edge_url, question, one, other)
                        for question, one, other in zip(asked, whole, answers[kind.value], strict=True)
                        if one.token_ids != other.token_ids
                    ],
                )
                for kind in kinds
            ]


async def answers_of(
    places: dict[Needs, EdgeSite], asked: Configuration, questions: Sequence[Question], args: Namespace, done: Any
) -> list[ReplayedAnswer]:
    async with HTTPClient(places[asked.needs].edge_url, CLIENT) as edge:

        async def one(number: int) -> ReplayedAnswer:
            body = {
                "messages": [{"role": "user", "content": questions[number].prompt}],
                "max_tokens": args.max_tokens,
                "temperature": 0,
                "collaboration": {"tokens": True},
                **asked.fields,
            }
            reply = await edge.post("/v1/chat/completions", body, dict[str, Any])
            done()
            tokens = reply["choices"][0]["collaboration"]["tokens"]
            told = reply["collaboration"]
            return ReplayedAnswer(
                [token["token_id"] for token in tokens], [token["text"] for token in tokens], told["bytes_up"]
            )

        return await in_turns(args.clients, one, range(len(questions)))


async def difference(
    cloud: HTTPClient, edge_url: str, question: Question, whole: ReplayedAnswer, split: ReplayedAnswer
) -> Divergence:
    """What the whole model says of its token and the other one, after all that the answers have in common."""
    at = common_prefix(whole.token_ids, split.token_ids)
    one, other = ((a.texts[at], a.token_ids[at]) if at < len(a.token_ids) else ("", None) for a in (whole, split))
    gap = None
    if one[1] is not None and other[1] is not None:
        async with HTTPClient(edge_url, CLIENT) as edge:
            messages = [{"role": "user", "content": question.prompt}]
            prompt = await edge.post("/tokenize", {"messages": messages}, dict[str, Any])
        body = {"prompt": [*prompt["tokens"], *whole.token_ids[:at]], "max_tokens": 1, "temperature": 0, "logprobs": 20}
        reply = await cloud.post("/v1/completions", {**body, "return_tokens_as_token_ids": True}, dict[str, Any])
        likeliest = reply["choices"][0]["logprobs"]["top_logprobs"][0]
        both = [likeliest.get(f"token_id:{token}") for token in (one[1], other[1])]
        gap = None if None in both else both[0] - both[1]
    return Divergence(question=question.prompt, position=at, whole=one[0], split=other[0], gap=gap)


def show(found: Sequence[ExactnessResult], console: Console) -> None:
    made = Table(title="Thresholds above 1 against the whole model, greedy", title_justify="left")
    for head in ("states travel as", "answers", "tokens", "bytes up", "answers that differ", "share", "largest gap"):
        made.add_column(head, justify="right")
    for one in found:
        different = len(one.differences)
        gap = "–" if one.largest_gap is None else f"{one.largest_gap:.4f}"
        share = f"{different / one.answers:.1%}"
        made.add_row(one.kind, str(one.answers), str(one.tokens), f"{one.bytes_up:,}", str(different), share, gap)
    console.print(made)
    for one in found:
        for each in one.differences:
            gap = "unknown" if each.gap is None else f"{each.gap:.4f}"
            console.print(
                f"{one.kind}: {each.question!r}, token {each.position + 1}: {each.whole!r} or {each.split!r}, gap {gap}"
            )


if __name__ == "__main__":
    sys.exit(run_program(main()))
