"""Chooses a gate for each unit of tasks on all other units, so that no choice has seen the tasks it is judged by."""

from collections.abc import Mapping, Sequence

from experiments.harness.measures import MeasureDefinition, Sample, Unit
from experiments.harness.statistics import each_once

WITHIN = 0.02
"""pass@1 may be this much below cloud only's and still count as kept."""


def cross_fitted(
    gates: Mapping[str, Sample], cloud: Sample, definitions: Mapping[str, MeasureDefinition]
) -> tuple[Sample, list[str]]:
    """Each unit as answered by the gate that is chosen on the other units; and the names of the gates that were chosen.

    Units that not all gates and cloud only have answered are left out.
    """
    units = sorted(unit for unit in cloud if all(unit in gate for gate in gates.values()))
    sample, chosen = Sample(), list[str]()
    for unit in units if len(units) > 1 else []:
        name = choose(gates, cloud, definitions, [other for other in units if other != unit])
        sample[unit] = gates[name][unit]
        chosen.append(name)
    return sample, sorted(set(chosen))


def choose(
    gates: Mapping[str, Sample],
    cloud: Sample,
    definitions: Mapping[str, MeasureDefinition],
    units: Sequence[Unit],
) -> str:
    """Of the gates that keep pass@1 on these units, the one with the fewest cloud-computed tokens.

    If none keeps it, the one that loses least.
    """

    def over(name: str, sample: Sample) -> float:
        return float(definitions[name].how.of(sample, units, each_once(len(units)))[0])

    lost = {name: over("quality", cloud) - over("quality", gate) for name, gate in gates.items()}
    keeping = [name for name in gates if lost[name] <= WITHIN]
    if not keeping:
        return min(gates, key=lambda name: lost[name])
    return min(keeping, key=lambda name: over("cloud_computed", gates[name]))
