"""From the trials that were made to the report of an experiment. Knows no server and no screen.

The first configuration is the baseline: it is what the others are compared with.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.types import Mode, Provenance
from experiments.harness import measures
from experiments.harness.measures import MEASURES, Definition, Sample
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.report.schema import AnswerRow, Contribution, Environment, ExperimentReport, Workload
from experiments.report.schema import ConfigurationReport as Reported
from experiments.setup.ablations import BASELINE, FEATURES
from experiments.setup.configurations import Configuration


def report(
    title: str,
    plan: ExperimentPlan,
    entries: Iterable[TrialResult],
    environment: Environment,
    metric: str,
    options: dict[str, Any],
    chosen: Mapping[str, Definition] = MEASURES,
) -> ExperimentReport:
    """Of the plan's first cell. `metric`: what quality is measured by; `options`: the command line's."""
    by_name: dict[str, list[TrialResult]] = {configuration.name: [] for configuration in plan.configurations}
    for entry in entries:
        if entry.what.cell == 0:
            by_name[entry.what.configuration].append(entry)
    definitions = defined(plan, by_name, chosen)
    base = plan.baseline or plan.configurations[0].name
    samples = {name: measures.sample(found) for name, found in by_name.items()}
    configurations = [
        reported(configuration, by_name[configuration.name], samples, base, definitions)
        for configuration in plan.configurations
    ]
    network = plan.places[0].network
    return ExperimentReport(
        title=title,
        environment=environment,
        workload=Workload(name=plan.data, questions=plan.questions, metric=metric, prompts_sha256=plan.prompts_sha256),
        options=options,
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


def defined(
    plan: ExperimentPlan, by_name: Mapping[str, Iterable[TrialResult]], chosen: Mapping[str, Definition] = MEASURES
) -> dict[str, Definition]:
    """The chosen measures: agreement is one where cloud only has answered something to agree with."""
    reference: dict[int, str] = {}
    cloud_only = next((one.name for one in plan.configurations if one.mode is Mode.CLOUD_ONLY), None)
    for row in rows(by_name[cloud_only] if cloud_only else ()):
        if row.error is None:
            reference.setdefault(row.question, row.text)
    found = dict(chosen)
    if reference:
        found["agreement"] = measures.agreement(reference)
    return found


def reported(
    asked: Configuration,
    entries: Sequence[TrialResult],
    samples: Mapping[str, Sample],
    base: str,
    definitions: Mapping[str, Definition],
) -> Reported:
    found, compared = samples[asked.name], asked.name != base
    answers = rows(entries)
    good = [row for row in answers if row.error is None]
    provenance = Counter({str(source): 0 for source in Provenance})
    for row in good:
        provenance.update(row.provenance)
    measured = {name: one for name, each in definitions.items() if (one := measures.measured(each, found))}
    differences = {}
    if compared:
        each = {name: measures.difference(definitions[name], found, samples[base]) for name in measured}
        differences = {name: one for name, one in each.items() if one}
    return Reported(
        name=asked.name,
        description=asked.description,
        config_overrides=asked.config_overrides,
        request=asked.fields,
        answers=len(good),
        failures=len(answers) - len(good),
        first_failure=next((row.error for row in answers if row.error), None),
        measures=measured,
        differences=differences,
        provenance=dict(provenance),
        latencies_ms=[row.latency_ms for row in good],
        unchanged=compared and bool(good) and measures.unchanged(definitions, found, samples[base]),
    )


def rows(entries: Iterable[TrialResult]) -> list[AnswerRow]:
    """All answers, by question and repeat, whatever the order in which they were asked for."""
    return sorted((row for entry in entries for row in entry.rows), key=lambda row: (row.question, row.repeat))


def contributions(configurations: Sequence[Reported]) -> list[Contribution]:
    """What each feature is worth by the measures that it is for, as far as it was switched off."""
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
    timed: dict[tuple[str, ...], list[str]] = {}
    for one in configurations:
        timed.setdefault(tuple(one.timed), []).append(one.name)
    for keys, names in timed.items():
        if keys:
            yield f"{'; '.join(names)}: counts depend on timing, and may be others in another run: {', '.join(keys)}"
