"""Evaluates the demo pair on the engines that run it: held-out exact match, and acceptance of edge drafts.

    python -m models.evaluate [--per-kind N] [--write]

Knows nothing of training or servers.
"""

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from cloud import stateless
from cloud.engine import CloudEngine
from cloud.rounds import Round
from common.pipeline import Pipeline
from common.policy import Plan
from common.terminal import console
from common.types import GREEDY, Sampling, Verdict
from edge.engine import EdgeEngine
from models import heldout, tasks
from models.export import CLOUD, EDGE, MODELS

MAX_TOKENS = 160
DRAFT_LENGTHS = (1, 4, 8, 16)
README = MODELS / "README.md"
MARKS = "<!-- evaluation -->\n", "<!-- end of evaluation -->\n"


@dataclass
class Question:
    """One held-out prompt, its right answer, and what each model answers greedily."""

    kind: str
    prompt: str
    answer: str
    prompt_ids: list[int]
    cloud_ids: list[int]
    cloud: str = ""
    edge: str = ""


class Replay:
    """A verifier that knows what the cloud answers greedily, and so needs no engine to verify exactly."""

    calls = bytes_up = bytes_down = 0

    def __init__(self, question: Question) -> None:
        self._prompt = len(question.prompt_ids)
        self._truth = question.cloud_ids

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        rest = self._truth[len(token_ids) - self._prompt :]
        accepted = 0
        while accepted < min(len(draft), len(rest)) and draft[accepted] == rest[accepted]:
            accepted += 1
        drawn = rest[: accepted + max_tokens]
        return Verdict(list(drawn), accepted, len(drawn) == len(rest), 0.0)


async def cloud_answers(engine: EdgeEngine, questions: list[Question]) -> None:
    """Fills in what the cloud model answers on vLLM; the two share a vocabulary, so the edge can spell it."""
    cloud = CloudEngine(str(CLOUD), args={"max_model_len": engine.context_length})
    await cloud.start()
    try:
        answers = [
            asyncio.create_task(stateless.verify(cloud, Round(q.prompt_ids, [], max_tokens=MAX_TOKENS)))
            for q in questions
        ]
        for question, answer in track(list(zip(questions, answers, strict=True)), "cloud answers"):
            question.cloud_ids = (await answer).token_ids
            question.cloud = engine.detokenize(question.cloud_ids)
    finally:
        await cloud.close()


async def edge_answers(engine: EdgeEngine, questions: list[Question]) -> None:
    for question in track(questions, "edge answers"):
        async with engine.sequence(question.prompt_ids) as sequence:
            draft = await sequence.draft(question.prompt_ids, MAX_TOKENS, GREEDY)
        question.edge = engine.detokenize(draft.token_ids)


async def acceptance(engine: EdgeEngine, questions: list[Question], draft_length: int) -> tuple[float, float]:
    """Acceptance rate, and tokens per round, of greedy lossless rounds with drafts of this length."""
    plan = Plan(use_confidence_check=False, max_draft_tokens=draft_length)
    drafted = accepted = rounds = tokens = 0
    for question in track(questions, f"drafts of {draft_length}"):
        async with engine.sequence(question.prompt_ids) as sequence:
            pipeline = Pipeline(question.prompt_ids, MAX_TOKENS, GREEDY, plan, sequence, Replay(question))
            output = [token async for chunk in pipeline.run() for token in chunk.token_ids]
        assert output == question.cloud_ids, "lossless rounds give the cloud's own tokens"
        report = pipeline.answer.report
        drafted, accepted = drafted + report.drafted, accepted + report.accepted
        rounds, tokens = rounds + report.rounds, tokens + len(output)
    return accepted / drafted, tokens / rounds


async def evaluate(per_kind: int | None) -> str:
    """The evaluation's tables in Markdown."""
    async with EdgeEngine(str(EDGE), context_length=1024) as engine:
        questions = [ask(engine, *pair) for pair in heldout.pairs(per_kind)]
        await cloud_answers(engine, questions)
        await edge_answers(engine, questions)
        lengths = [(n, *await acceptance(engine, questions, n)) for n in DRAFT_LENGTHS]
    lines = ["| questions | n | cloud exact match | edge exact match |", "|---|---|---|---|"]
    lines += [score_line(kind, members) for kind, members in groups(questions).items()]
    lines += ["", "| draft length | acceptance rate | tokens per round |", "|---|---|---|"]
    lines += [f"| {n} | {rate:.3f} | {per_round:.2f} |" for n, rate, per_round in lengths]
    return "\n".join(lines) + "\n"


def ask(engine: EdgeEngine, kind: str, prompt: str, answer: str) -> Question:
    ids = engine.tokenize(f"<|user|>{prompt}<|assistant|>", add_special=False, parse_special=True)
    return Question(kind, prompt, answer, ids, [])


def groups(questions: list[Question]) -> dict[str, list[Question]]:
    """The questions by kind, then facts and tasks each together, then all."""
    found: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        found[question.kind].append(question)
    found["**facts**"] = [q for q in questions if q.kind not in tasks.TASKS]
    found["**tasks**"] = [q for q in questions if q.kind in tasks.TASKS]
    found["**all**"] = questions
    return found


def score_line(name: str, members: list[Question]) -> str:
    cloud = sum(q.cloud == q.answer for q in members) / len(members)
    edge = sum(q.edge == q.answer for q in members) / len(members)
    return f"| {name} | {len(members)} | {cloud:.3f} | {edge:.3f} |"


def write(table: str, path: Path = README) -> None:
    """Puts the table between its marks in models/README.md."""
    before, _, rest = path.read_text().partition(MARKS[0])
    path.write_text(before + MARKS[0] + table + MARKS[1] + rest.partition(MARKS[1])[2])


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the demo pair on vLLM and llama.cpp.")
    parser.add_argument("--per-kind", type=int, help="only so many questions of each kind")
    parser.add_argument("--write", action="store_true", help="put the tables into models/README.md")
    args = parser.parse_args()
    table = asyncio.run(evaluate(args.per_kind))
    console().print(table)
    if args.write:
        write(table)


if __name__ == "__main__":
    main()
