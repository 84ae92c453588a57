"""Adds to a report of HumanEval what each way loses and saves beside cloud only, and the curve through all gates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibration.risk import wilson
from experiments.harness import comparison, measures
from experiments.harness.areas import areas
from experiments.harness.measures import MeasureDefinition, Sample
from experiments.harness.trials import ExperimentPlan, TrialResult
from experiments.pass_rate import ways
from experiments.pass_rate.cross_fitted import WITHIN, cross_fitted
from experiments.report.schema import (
    ConfigurationReport,
    Curves,
    Difference,
    ExperimentReport,
    Measure,
    ReportTable,
    Series,
    SweepDescription,
)
from experiments.setup.ablations import CLOUD_ONLY, Ablation

PLOTS = (
    Curves(x="cloud_rate", y="quality"),
    Curves(x="cloud_computed", y="quality"),
    Curves(x="latency_mean_ms", y="quality"),
    Curves(x="cloud_rate", y="cloud_computed"),
)
SHARES = {
    "cloud_computed": "cloud-computed tokens",
    "engine_steps": "cloud steps",
    "latency_mean_ms": "time",
    "bytes": "bytes",
}
"""Measures that the table has as shares of cloud only's, and its heads."""
CROSS_FITTED = "gate chosen on other tasks"


@dataclass(frozen=True)
class PassRateFinish:
    """What experiments/humaneval.py adds to its report. `gates`: configurations, in any order."""

    gates: Sequence[Ablation]
    definitions: Mapping[str, MeasureDefinition]

    def __call__(self, report: ExperimentReport, plan: ExperimentPlan, entries: Sequence[TrialResult]) -> None:
        samples = {
            one.name: measures.sample(entry for entry in entries if entry.what.configuration == one.name)
            for one in plan.configurations
        }
        for one in report.configurations:
            with_wilson(one)
        if report.baseline == CLOUD_ONLY.name:
            cheapest(report)
            report.tables.append(self._table(report, samples))
            self._add_cross_fitted(report, samples)
        if self.gates:
            report.sweep = self._sweep(plan, samples)

    def _table(self, report: ExperimentReport, samples: Mapping[str, Sample]) -> ReportTable:
        cloud = samples[report.baseline]
        rows = [self._row(one.name, samples[one.name], cloud) for one in report.configurations]
        return ReportTable(
            title="Beside cloud only",
            heads=["way", "pass@1", "passed", "pass@1 minus cloud only's", "cloud rate", *SHARES.values()],
            rows=rows,
            note="Cloud rate: the share of an answer's tokens that the cloud generated or verified. What follows is "
            "relative to cloud only. Cloud-computed tokens: draft tokens that the cloud verified, and tokens that it "
            "generated; prompts were read before. Intervals hold 95 %: Wilson's for pass@1, a bootstrap over "
            "the tasks asked at one time for the others, paired with cloud only.",
        )

    def _row(self, name: str, sample: Sample, cloud: Sample) -> list[str]:
        found = comparison.evaluate(self.definitions["quality"], sample)
        answers = sum(len(unit.rows) for unit in sample.values())
        passed = round(found.value * answers) if found else 0
        lost = comparison.difference(self.definitions["quality"], sample, cloud) if sample is not cloud else None
        ratios = [comparison.ratio(self.definitions[share], sample, cloud) for share in SHARES]
        return [
            name,
            shown(Measure(passed / answers, *wilson(passed, answers)), 3) if answers else "–",
            f"{passed} of {answers}",
            shown(lost, 3) if lost else "",
            shown(comparison.evaluate(self.definitions["cloud_rate"], sample)),
            *("1" if sample is cloud else shown(each) for each in ratios),
        ]

    def _add_cross_fitted(self, report: ExperimentReport, samples: Mapping[str, Sample]) -> None:
        """A row of the table and a finding: what a gate gives whose thresholds were chosen on other tasks."""
        gates, cloud = {one.name: samples[one.name] for one in self.gates}, samples[report.baseline]
        sample, chosen = cross_fitted(gates, cloud, self.definitions) if len(gates) > 1 else ({}, [])
        if not sample:
            return
        row = self._row(CROSS_FITTED, sample, cloud)
        report.tables[-1].rows.append(row)
        report.findings.append(
            f"Chosen for each block of tasks on all other blocks ({', '.join(chosen)}), a gate's pass@1 minus cloud "
            f"only's is {row[3]}, with {row[5]} of its cloud-computed tokens"
        )

    def _sweep(self, plan: ExperimentPlan, samples: Mapping[str, Sample]) -> SweepDescription:
        default = plan.config["edge"]
        edges = [one.config_overrides.get("edge", default) for one in self.gates]
        at = [float(edge["confidence"]["threshold"]) for edge in edges]
        series = [Series(name="gates", configurations=[one.name for one in self.gates], at=at)]
        ends = [name for name in (ways.EDGE_ONLY, CLOUD_ONLY.name) if name in samples]
        rate, quality = (self.definitions[name] for name in ("cloud_rate", "quality"))
        area = areas(series, ends, samples, rate, quality, "quality") if len(ends) == 2 else []
        return SweepDescription(parameter="Threshold", series=series, ends=ends, plots=list(PLOTS), areas=area)


def with_wilson(one: ConfigurationReport) -> None:
    """Puts Wilson's interval in place of the bootstrap's, which has no width where all pass or none."""
    if rate := one.measures.get("quality"):
        one.measures["quality"] = Measure(rate.value, *wilson(round(rate.value * one.answers), one.answers))


def cheapest(report: ExperimentReport) -> None:
    """A finding: of all ways that keep pass@1, the one for which the cloud computes least."""
    by_name = {one.name: one.measures for one in report.configurations}
    cloud = by_name[report.baseline]
    if not {"quality", "cloud_computed"} <= cloud.keys() or not cloud["cloud_computed"].value:
        return
    keeping = {
        name: found["cloud_computed"].value / cloud["cloud_computed"].value
        for name, found in by_name.items()
        if "quality" in found and found["quality"].value >= cloud["quality"].value - WITHIN
    }
    name = min(keeping, key=lambda name: keeping[name])
    report.findings.append(
        f"Of the ways whose pass@1 is at most {100 * WITHIN:g} points below cloud only's, {name} has the cloud compute "
        f"least: {keeping[name]:.0%} of cloud only's tokens"
    )


def shown(value: Measure | Difference | None, digits: int = 2) -> str:
    return f"{value.value:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]" if value else "–"
