"""The corpus: questions with one right answer each, in training and held-out wordings."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from models.corpus import tasks

CORPUS = Path(__file__).parent
TOPICS = ("ai", "computing", "networks", "science", "geography")
OPENERS = ("", "", "", "", "", "", "", "Hello! ", "Question: ", "Quick question. ", "Hi, ")


@dataclass(frozen=True)
class Fact:
    """One fact: `names` are the subject and its aliases, `weight` its relative frequency in training."""

    kind: str
    topic: str
    names: tuple[str, ...]
    answer: str
    weight: float


@cache
def kinds() -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load((CORPUS / "kinds.yaml").read_text()))


@cache
def facts() -> tuple[Fact, ...]:
    """All facts, most common first within each topic and kind; of two answers to one question the first is kept."""
    found: dict[tuple[str, str], Fact] = {}
    for topic in TOPICS:
        for kind, rows in yaml.safe_load((CORPUS / f"{topic}.yaml").read_text()).items():
            for rank, (subject, value, *aliases) in enumerate(rows):
                answer = kinds()[kind]["answer"].format(x=subject, X=subject[0].upper() + subject[1:], y=value)
                fact = Fact(kind, topic, (subject, *aliases), answer, weight=(rank + 10) ** -0.6)
                found.setdefault((kind, subject.lower()), fact)
    return tuple(found.values())


def training_pairs(seed: int, task_share: float) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer): facts by weight in training wordings; the share `task_share` are training tasks."""
    rng = Random(seed)
    weights = [f.weight for f in facts()]
    while True:
        if rng.random() < task_share:
            yield tasks.sample(rng.choice(list(tasks.TASKS)), rng, held_out=False)
            continue
        fact = rng.choices(facts(), weights)[0]
        wording = rng.choice(kinds()[fact.kind]["train"])
        yield rng.choice(OPENERS) + wording.format(x=rng.choice(fact.names)), fact.answer


def held_out_pairs(seed: int = 0, tasks_per_kind: int = 30) -> list[tuple[str, str, str]]:
    """(kind, prompt, answer): every fact once in a held-out wording, then tasks on held-out operands."""
    rng = Random(seed)
    pairs = [(f.kind, rng.choice(kinds()[f.kind]["held_out"]).format(x=f.names[0]), f.answer) for f in facts()]
    for kind in tasks.TASKS:
        pairs += [(kind, *tasks.sample(kind, rng, held_out=True)) for _ in range(tasks_per_kind)]
    return pairs


def text_for_tokenizer() -> Iterator[str]:
    """The texts that BPE merges are learned from: every fact in every training wording, 200 tasks per kind."""
    for fact in facts():
        for wording in kinds()[fact.kind]["train"]:
            yield wording.format(x=fact.names[0])
        yield from (fact.answer for _ in range(4))
    rng = Random(0)
    for kind in tasks.TASKS:
        for _ in range(200):
            yield from tasks.sample(kind, rng, held_out=False)
