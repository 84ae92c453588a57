"""The measures of HumanEval: those of all experiments, and what the cloud computed."""

from dataclasses import replace

from msgspec import structs

from common.enums import BY_CLOUD
from experiments.harness.measures import MEASURES, MeasureDefinition, cloud_tokens, count, counted, mean, over
from experiments.report.schema import AnswerRow

WRONG_AT_STOPS = ("cloud_steps", "cloud_busy_ms")
"""Measures of other experiments that miss the steps, or count the idle time, of a stream that a stop string ends."""


def cloud_computed(row: AnswerRow) -> float:
    """Draft tokens that the cloud verified, and tokens that it generated."""
    return row.drafted + sum(row.provenance.get(source, 0) for source in BY_CLOUD)


def computed(row: AnswerRow) -> float:
    """All tokens of an answer, those that a stop string cut off included."""
    return sum(row.provenance.values())


def definitions(max_tokens: int) -> dict[str, MeasureDefinition]:
    """By name; `quality` is the share of answers that pass."""
    found = {name: one for name, one in MEASURES.items() if name not in WRONG_AT_STOPS}
    quality = found.pop("quality")
    return {
        "quality": replace(quality, info=structs.replace(quality.info, title="pass@1")),
        "cloud_rate": replace(found.pop("cloud_rate"), how=over(cloud_tokens, computed)),
        "cloud_computed": count("Cloud-computed tokens", "per answer", "lower", mean(cloud_computed), exact=False),
        "engine_steps": count(
            "Steps of the cloud's engine", "per answer", "lower", counted(lambda each: each.cloud.steps), exact=False
        ),
        "bytes": count("Bytes", "per answer", "lower", mean(lambda row: row.bytes_up + row.bytes_down), exact=False),
        **found,
        "engine_tokens": count(
            "Tokens of the cloud's engine, prompts included", "per answer", "lower",
            counted(lambda each: each.cloud.computed + each.cloud.drafted - each.cloud.accepted), exact=False,
        ),
        "cut_off": count(
            f"Cut off at {max_tokens} tokens", "", "lower", mean(lambda row: float(row.tokens >= max_tokens))
        ),
    }  # fmt: skip
