"""The ways of answering that experiments with a split model compare, and what all their servers have in common.

Knows no server. Whoever is compared has exact arithmetic and no prefix cache: a split model has none between answers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from common.config_schema import Config
from common.protocol.split_manifest import DEMO, read_manifest
from common.types import Mode
from experiments.harness import experiment
from experiments.harness.experiment import ExperimentKind, Finish
from experiments.report.schema import ConfigurationReport, Curve
from experiments.setup.ablations import Ablation
from experiments.split import measures
from experiments.split.formulas import SplitShape

SETTINGS = (
    *experiment.SETTINGS,
    "cloud.kv_cache.enable_prefix_caching=false",
    f"cloud.split.manifest={DEMO}",
    "cloud.split.engine_args={dtype: float32}",
    f"edge.split.manifest={DEMO}",
    "edge.split.deadline_ms=30000",
    "edge.model.sequences=16",
)
"""What all have, unless the command line sets it otherwise; a cloud that is slow is waited for, not done without."""
NETWORK = "14,20"
"""Milliseconds there and back, and Mbit/s: between edge and cloud unless the command line says otherwise."""

NAIVE = Ablation(
    name="naive_split",
    description="no exits, no memory in the cloud: the whole context in fp32 for each token, synchronously",
    mode=Mode.SPLIT,
    edge="experiments.split.naive_edge",
)
STANDALONE = Ablation(
    name="standalone",
    description="the edge's segments alone: the last exit decides",
    mode=Mode.SPLIT,
    fields={"privacy": "edge_only"},
)


def split(threshold: float, name: str | None = None, also: str = "", **settings: object) -> Ablation:
    """The layer split with this threshold at all exits and `settings` of `edge.split`; `also` ends its description."""
    told = "no exit is ever taken" if threshold > 1 else f"an exit that is {threshold:g} sure decides"
    return Ablation(
        name=name or f"split {threshold:g}",
        description=told + also,
        config_overrides={"edge": {"split": settings}} if settings else {},
        mode=Mode.SPLIT,
        fields={"use_confidence_check": False} if threshold > 1 else {"confidence_threshold": threshold},
    )


def parser(description: str, questions: int, repeats: int, output: str) -> argparse.ArgumentParser:
    made = experiment.parser(description, questions, repeats)
    made.set_defaults(network=NETWORK, turns=0, output=output)
    return made


def curve(title: str, measure: str, swept: Sequence[tuple[float, ConfigurationReport]]) -> Curve:
    """A measure over the thresholds at which it was taken."""
    known = [(x, one.measures[measure]) for x, one in swept if measure in one.measures]
    return Curve(name=title, x=[x for x, _ in known], y=[y for _, y in known])


def shape_of(config: Config) -> SplitShape:
    """Of the model whose manifest the config names."""
    manifest = read_manifest(Path(config.edge.split.manifest))
    return SplitShape(manifest.hidden, manifest.layers, manifest.tail.first)


def kind(base: Config, baseline: Ablation, program: str, finish: Finish, **asked: object) -> ExperimentKind:
    """What an experiment with a split model does its own way; `asked` are fields of its plan."""
    return ExperimentKind(
        program=program,
        settings=SETTINGS,
        measures=measures.measures(shape_of(base)),
        asked={"baseline": baseline.name, "warm": False, **asked},
        finish=finish,
    )
