"""The measures of HumanEval: those of all experiments, and what the cloud computed."""

from dataclasses import replace

from msgspec import structs

from common.types import Provenance
from experiments.harness.measures import MEASURES, MeasureDefinition, count, counted, mean
from experiments.report.schema import AnswerRow

GENERATED = (Provenance.RECOVERED, Provenance.BONUS, Provenance.CLOUD)


def cloud_computed(row: AnswerRow) -> float:
    """Draft tokens that the cloud verified, and tokens that it generated."""
    return row.drafted + sum(row.provenance.get(source, 0) for source in GENERATED)


def definitions(max_tokens: int) -> dict[str, MeasureDefinition]:
    """By name; `quality` is the share of answers that pass."""
    found = dict(MEASURES)
    quality, cloud_rate = found.pop("quality"), found.pop("cloud_rate")
    return {
        "quality": replace(quality, info=structs.replace(quality.info, title="pass@1")),
        "cloud_rate": cloud_rate,
        "cloud_computed": count("Cloud-computed tokens", "per answer", "lower", mean(cloud_computed), exact=False),
        "bytes": count("Bytes", "per answer", "lower", mean(lambda row: row.bytes_up + row.bytes_down), exact=False),
        **found,
        "engine_tokens": count(
            "Tokens of the cloud's engine, prompts included", "per answer", "lower",
            counted(lambda each: each.cloud.computed + each.cloud.drafted - each.cloud.accepted), exact=False,
        ),
        "engine_steps": count(
            "Steps of the cloud's engine", "per answer", "lower", counted(lambda each: each.cloud.steps), exact=False
        ),
        "cut_off": count(
            f"Cut off at {max_tokens} tokens", "", "lower", mean(lambda row: float(row.tokens >= max_tokens))
        ),
    }  # fmt: skip
