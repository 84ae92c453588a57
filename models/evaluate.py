"""Evaluates the demo models on vLLM and llama.cpp: exact match on held-out questions, and acceptance of edge drafts.

python -m models.evaluate [--edge demo-edge|demo-edge-other] [--per-kind N] [--write]
"""

import argparse
import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from rich.progress import track

from cli.args import count, run_program
from cli.terminal import console
from cloud.engine.engine import CloudEngine
from cloud.verify import stateless
from cloud.verify.round import VerifyRound
from common.config_edge import EdgeModelConfig
from common.decoding.drafters.vocab_translation import TranslatingDrafter
from common.decoding.interfaces import Drafter
from common.decoding.pipeline import Pipeline
from common.decoding.policy import Plan
from common.decoding.request import DecodingRequest
from common.http.traffic import Traffic
from common.protocol.prefix_hash import common_prefix
from common.protocol.vocabulary import RemoteVocabulary, TokenizerFile
from common.types import GREEDY, FinishReason, Sampling, Verdict, VerificationMode
from edge.engine.engine import EdgeEngine, EdgeSequence
from models import heldout
from models.corpus import tasks
from models.demo import CLOUD, EDGE, EDGE_OTHER, write_tables
from models.train.tokenizer import OTHER, PAIR, DemoVocabulary

MAX_TOKENS = 160
DRAFT_LENGTHS = (1, 4, 8, 16)
EDGES = {EDGE.stem: (EDGE, PAIR), EDGE_OTHER.stem: (EDGE_OTHER, OTHER)}


@dataclass
class EvaluatedQuestion:
    """One held-out prompt in each model's token ids, its right answer, and each model's greedy answer."""

    kind: str
    prompt: str
    answer: str
    prompt_ids: list[int]
    edge_prompt_ids: list[int]
    cloud_ids: list[int]
    cloud: str = ""
    edge: str = ""


class ReplayVerifier:
    """A verifier that replays the cloud's greedy answer, so that verifying needs no engine and is exact."""

    def __init__(self, question: EvaluatedQuestion) -> None:
        self.traffic = Traffic()
        self._prompt = len(question.prompt_ids)
        self._truth = question.cloud_ids

    async def verify(
        self, token_ids: Sequence[int], draft: Sequence[int], sampling: Sampling, max_tokens: int
    ) -> Verdict:
        rest = self._truth[len(token_ids) - self._prompt :]
        accepted = common_prefix(list(draft), rest)
        drawn = rest[: accepted + max_tokens]
        return Verdict(list(drawn), accepted, FinishReason.STOP if len(drawn) == len(rest) else None, 0.0)

    def stream(self, token_ids: Sequence[int], max_tokens: int, sampling: Sampling) -> NoReturn:
        raise NotImplementedError("a replay answers only in rounds")


async def cloud_answers(vocabulary: RemoteVocabulary, questions: list[EvaluatedQuestion]) -> None:
    """Fills in the cloud model's answers by vLLM."""
    cloud = CloudEngine(str(CLOUD), args={"max_model_len": 1024})
    await cloud.start()
    try:
        answers = [
            asyncio.create_task(stateless.verify(cloud, VerifyRound(q.prompt_ids, [], max_tokens=MAX_TOKENS)))
            for q in questions
        ]
        for question, answer in track(list(zip(questions, answers, strict=True)), "cloud answers"):
            question.cloud_ids = (await answer).token_ids
            question.cloud = b"".join(map(vocabulary.piece, question.cloud_ids)).decode(errors="replace")
    finally:
        await cloud.close()


async def edge_answers(engine: EdgeEngine, questions: list[EvaluatedQuestion]) -> None:
    """Fills in the edge model's answers by llama.cpp."""
    for question in track(questions, "edge answers"):
        async with engine.sequence(question.edge_prompt_ids) as sequence:
            draft = await sequence.draft(question.edge_prompt_ids, MAX_TOKENS, GREEDY)
        question.edge = engine.detokenize(draft.token_ids)


async def acceptance(
    engine: EdgeEngine, cloud: RemoteVocabulary, questions: list[EvaluatedQuestion], draft_length: int
) -> tuple[float, float]:
    """The acceptance rate, and the tokens per round, of greedy lossless rounds with this draft length."""
    plan = Plan(use_confidence_check=False, max_draft_tokens=draft_length, verification_mode=VerificationMode.ROUNDS)
    drafted = accepted = rounds = tokens = 0
    for question in track(questions, f"drafts of {draft_length}"):
        async with engine.sequence(question.edge_prompt_ids) as sequence:
            drafter = in_cloud_tokens(sequence, engine, cloud, question)
            pipeline = Pipeline(
                DecodingRequest(question.prompt_ids, MAX_TOKENS, GREEDY, plan), drafter, ReplayVerifier(question)
            )
            output = [token async for chunk in pipeline.run() for token in chunk.token_ids]
        assert output == question.cloud_ids, "a lossless answer must have the cloud's tokens"
        report = pipeline.answer.report
        drafted, accepted = drafted + report.drafted, accepted + report.accepted
        rounds, tokens = rounds + report.rounds, tokens + len(output)
    return accepted / drafted, tokens / rounds


def in_cloud_tokens(
    sequence: EdgeSequence, engine: EdgeEngine, cloud: RemoteVocabulary, question: EvaluatedQuestion
) -> Drafter:
    """Drafts in the cloud's tokens: the edge's own, or translated if the prompt's ids differ."""
    if question.edge_prompt_ids == question.prompt_ids:
        return sequence
    return TranslatingDrafter(sequence, engine, cloud, question.edge_prompt_ids, len(question.prompt_ids))


def cloud_vocabulary() -> RemoteVocabulary:
    text = (CLOUD / "tokenizer.json").read_text()
    return RemoteVocabulary(
        TokenizerFile(fingerprint="", tokenizer=text, end_tokens=[0], chat_template="", bos="", eos=PAIR.end)
    )


async def evaluate(edge: str, per_kind: int | None) -> str:
    """The evaluation's tables in Markdown."""
    path, form = EDGES[edge]
    cloud = cloud_vocabulary()
    async with EdgeEngine(EdgeModelConfig(path=str(path), context_length=1024)) as engine:
        questions = [ask(engine, cloud, form, *pair) for pair in heldout.pairs(per_kind)]
        await cloud_answers(cloud, questions)
        await edge_answers(engine, questions)
        lengths = [(n, *await acceptance(engine, cloud, questions, n)) for n in DRAFT_LENGTHS]
    lines = ["| questions | n | cloud exact match | edge exact match |", "|---|---|---|---|"]
    lines += [score_line(kind, members) for kind, members in groups(questions).items()]
    lines += ["", "| draft length | acceptance rate | tokens per round |", "|---|---|---|"]
    lines += [f"| {n} | {rate:.3f} | {per_round:.2f} |" for n, rate, per_round in lengths]
    return "\n".join(lines) + "\n"


def ask(
    engine: EdgeEngine, cloud: RemoteVocabulary, form: DemoVocabulary, kind: str, prompt: str, answer: str
) -> EvaluatedQuestion:
    ids = cloud.prompt(PAIR.question.format(prompt), add_special=False)
    edge_ids = engine.tokenize(form.question.format(prompt), add_special=False, parse_special=True)
    return EvaluatedQuestion(kind, prompt, answer, ids, edge_ids, [])


def groups(questions: list[EvaluatedQuestion]) -> dict[str, list[EvaluatedQuestion]]:
    """The questions of each kind, of all facts, of all tasks, and all."""
    found: dict[str, list[EvaluatedQuestion]] = defaultdict(list)
    for question in questions:
        found[question.kind].append(question)
    found["**facts**"] = [q for q in questions if q.kind not in tasks.TASKS]
    found["**tasks**"] = [q for q in questions if q.kind in tasks.TASKS]
    found["**all**"] = questions
    return found


def score_line(name: str, members: list[EvaluatedQuestion]) -> str:
    cloud = sum(q.cloud == q.answer for q in members) / len(members)
    edge = sum(q.edge == q.answer for q in members) / len(members)
    return f"| {name} | {len(members)} | {cloud:.3f} | {edge:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.evaluate", description="Evaluate the demo models on vLLM and llama.cpp."
    )
    parser.add_argument("--edge", choices=EDGES, default=EDGE.stem, help="the edge model (default: %(default)s)")
    parser.add_argument("--per-kind", type=count, metavar="N", help="at most N questions of each kind (default: all)")
    parser.add_argument("--write", action="store_true", help="write the tables into models/README.md, too")
    args = parser.parse_args()
    return run_program(report(args.edge, args.per_kind, args.write))


async def report(edge: str, per_kind: int | None, write: bool) -> None:
    tables = await evaluate(edge, per_kind)
    console().print(tables)
    if write:
        write_tables(edge, tables)


if __name__ == "__main__":
    sys.exit(main())
