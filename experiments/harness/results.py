"""Computes the report of an experiment from its trials.

The other configurations are compared with the plan's baseline: the first configuration, unless the plan names one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.types import Mode, Provenance
from experiments.harness import comparison, measures
from experiments.harness.measures import MEASURES, MeasureDefinition, Sample
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import (
    AnswerRow,
    ConfigurationReport,
    Contribution,
    Environment,
    ExperimentReport,
    Workload,
)
from experiments.setup.ablations import BASELINE, FEATURES
from experiments.setup.configurations import Configuration


@dataclass(frozen=True)
class RunDescription:
    """What a report says about its run. `metric`: of quality; `options`: the command line's."""

    title: str
    environment: Environment
    metric: str
    options: dict[str, Any]


def report(
    plan: ExperimentPlan,
    entries: Iterable[TrialResult],
    run: RunDescription,
    chosen: Mapping[str, MeasureDefinition] = MEASURES,
) -> ExperimentReport:
    """The report on the plan's first load condition."""
    by_name: dict[str, list[TrialResult]] = {configuration.name: [] for configuration in plan.configurations}
    for entry in entries:
        if entry.what.cell == 0:
            by_name[entry.what.configuration].append(entry)
    definitions = definitions_for(plan, by_name, chosen)
    base = plan.baseline or plan.configurations[0].name
    samples = {name: measures.sample(found) for name, found in by_name.items()}
    configurations = [
        configuration_report(configuration, by_name[configuration.name], samples, base, definitions)
        for configuration in plan.configurations
    ]
    network = plan.conditions[0].network
    return ExperimentReport(
        title=run.title,
        environment=run.environment,
        workload=Workload(
            name=plan.data, questions=plan.questions, metric=run.metric, prompts_sha256=plan.prompts_sha256
        ),
        options=run.options,
        seed=plan.seed,
        repeats=plan.repeats,
        network=None if network is None else {"round trip, ms": network.round_trip_ms, "Mbit/s": network.mbit},
        config=plan.config,
        baseline=base,
        measures={name: definition.info for name, definition in definitions.items()},
        configurations=configurations,
        contributions=contributions(configurations),
        rows={name: rows(found) for name, found in by_name.items()},
        warnings=[*warnings(plan.configurations)],
    )


def definitions_for(
    plan: ExperimentPlan,
    by_name: Mapping[str, Iterable[TrialResult]],
    chosen: Mapping[str, MeasureDefinition] = MEASURES,
) -> dict[str, MeasureDefinition]:
    """The chosen measures, and agreement with cloud only where that has answered something."""
    reference: dict[int, str] = {}
    cloud_only = next((one.name for one in plan.configurations if one.mode is Mode.CLOUD_ONLY), None)
    for row in rows(by_name[cloud_only] if cloud_only else ()):
        if row.error is None:
            reference.setdefault(row.question, row.text)
    definitions = dict(chosen)
    if reference:
        definitions["agreement"] = measures.agreement(reference)
    return definitions


def configuration_report(
    configuration: Configuration,
    entries: Sequence[TrialResult],
    samples: Mapping[str, Sample],
    base: str,
    definitions: Mapping[str, MeasureDefinition],
) -> ConfigurationReport:
    """What one configuration measured, and its differences from the configuration `base`."""
    sample, compared = samples[configuration.name], configuration.name != base
    answers = rows(entries)
    good = [row for row in answers if row.error is None]
    provenance = Counter({str(source): 0 for source in Provenance})
    for row in good:
        provenance.update(row.provenance)
    measured = {name: one for name, each in definitions.items() if (one := comparison.evaluate(each, sample))}
    differences = {}
    if compared:
        each = {name: comparison.difference(definitions[name], sample, samples[base]) for name in measured}
        differences = {name: one for name, one in each.items() if one}
    return ConfigurationReport(
        name=configuration.name,
        description=configuration.description,
        config_overrides=configuration.config_overrides,
        request=configuration.fields,
        answers=len(good),
        failures=len(answers) - len(good),
        first_failure=next((row.error for row in answers if row.error), None),
        measures=measured,
        differences=differences,
        provenance=dict(provenance),
        latencies_ms=[row.latency_ms for row in good],
        unchanged=compared and bool(good) and comparison.unchanged(definitions, sample, samples[base]),
    )


def rows(entries: Iterable[TrialResult]) -> list[AnswerRow]:
    """All answers, ordered by question and repeat."""
    return sorted((row for entry in entries for row in entry.rows), key=lambda row: (row.question, row.repeat))


def contributions(configurations: Sequence[ConfigurationReport]) -> list[Contribution]:
    """What each feature contributes to the measures that it is for, where a configuration switches it off."""
    by_name = {configuration.name: configuration for configuration in configurations}
    base = by_name.get(BASELINE.name)
    if base is None:
        return []
    return [
        Contribution(
            feature=feature,
            configuration=name,
            measure=measure,
            baseline=base.measures[measure].value,
            without=by_name[name].measures[measure].value,
            difference=by_name[name].differences[measure],
        )
        for feature, (name, chosen) in FEATURES.items()
        if name in by_name
        for measure in chosen
        if measure in base.measures and measure in by_name[name].differences
    ]


def warnings(configurations: Iterable[Configuration]) -> Iterable[str]:
    """Which configurations have counts that depend on timing, and which keys of the config make it so."""
    timed: dict[tuple[str, ...], list[str]] = {}
    for one in configurations:
        timed.setdefault(tuple(one.timed), []).append(one.name)
    for keys, names in timed.items():
        if keys:
            yield f"{'; '.join(names)}: counts depend on timing and may differ in another run: {', '.join(keys)}"
