"""Defines what experiments with a split model compare, and the settings that all of it shares.

All variants compute in float32, and none keeps KV from one answer to the next: every answer is measured as a first one.
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
    "inference.features.use_kv_cache=false",
    f"cloud.split.manifest={DEMO}",
    "cloud.split.engine_args={dtype: float32}",
    f"edge.split.manifest={DEMO}",
    "edge.split.deadline_ms=30000",
    "edge.model.sequences=16",
)
"""Settings of all variants; the command line can override them. The long deadline is for a slow cloud."""
NETWORK = "14,20"
"""Default round trip in milliseconds and bandwidth in Mbit/s between edge and cloud."""

NAIVE = Ablation(
    name="naive_split",
    description="no exits and no state in the cloud: the whole context goes up in fp32 for each token, synchronously",
    mode=Mode.SPLIT,
    edge="experiments.split.naive_edge",
)
STANDALONE = Ablation(
    name="standalone",
    description="the edge's segments alone: the last exit decides",
    mode=Mode.SPLIT,
    fields={"privacy": "edge_only"},
)


def split(threshold: float | None, name: str | None = None, also: str = "", **settings: object) -> Ablation:
    """The layer split with this threshold at all exits and `settings` of `edge.split`; `also` ends its description.

    None: the thresholds of the config, of each exit its own.
    """
    rule, fields = f"an exit with a confidence of {threshold} or more decides", {"confidence_threshold": threshold}
    if threshold is None:
        rule, fields = "an exit decides from its own threshold in the config on", {}
    elif threshold > 1:
        rule, fields = "no exit is ever taken", {"use_confidence_check": False}
    return Ablation(
        name=name or f"split {threshold:g}",
        description=rule + also,
        config_overrides={"edge": {"split": settings}} if settings else {},
        mode=Mode.SPLIT,
        fields=fields,
    )


def parser(description: str, questions: int, repeats: int, output: str) -> argparse.ArgumentParser:
    """The options of all experiments, with the defaults of those with a split model."""
    options = experiment.parser(description, questions, repeats)
    options.set_defaults(network=NETWORK, turns=0, output=output)
    return options


def curve(title: str, measure: str, swept: Sequence[tuple[float, ConfigurationReport]]) -> Curve:
    """A measure over the thresholds at which it was measured."""
    points = [(x, one.measures[measure]) for x, one in swept if measure in one.measures]
    return Curve(name=title, x=[x for x, _ in points], y=[y for _, y in points])


def shape_of(config: Config) -> SplitShape:
    """The shape of the model whose manifest the config names."""
    manifest = read_manifest(Path(config.edge.split.manifest))
    return SplitShape(manifest.hidden, manifest.layers, manifest.tail.first)


def kind(
    name: str, title: str, base: Config, baseline: Ablation, finish: Finish, **plan_fields: object
) -> ExperimentKind:
    """An experiment with a split model, started as `-m experiments.NAME`; its tables compare with `baseline`."""
    return ExperimentKind(
        title=title,
        name=name,
        program=f"-m experiments.{name}",
        settings=SETTINGS,
        measures=measures.measures(shape_of(base)),
        plan_fields={"baseline": baseline.name, "warm": False, **plan_fields},
        finish=finish,
    )
