"""The configurations that HumanEval compares: each side alone, lossless, and gates at several thresholds.

Names and options come from the command line of experiments/humaneval.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from common import config as configs
from common.errors import ConfigError
from common.protocol.stream_frames import LONGEST_DRAFT
from common.types import Mode
from experiments.setup.ablations import CLOUD_ONLY, Ablation

EDGE_ONLY, LOSSLESS, ROUTE, GATED, CALIBRATED = "edge_only", "lossless", "route", "gated", "calibrated"
ALL = (EDGE_ONLY, CLOUD_ONLY.name, LOSSLESS, ROUTE, GATED, CALIBRATED)
CONFIDENCE_KEYS = ("strategy", "temperature", "top_k", "threshold", "product_threshold")
"""The keys of edge.confidence that a calibration sets."""


def chosen(names: str, thresholds: Sequence[str], calibrated: str | None, **common: Any) -> list[Ablation]:
    """The configurations of a comma-separated list, and a gate for each of `thresholds`.

    A gate is written "0.8,0.3", or "0.8,0.3,4" with a draft length. `calibrated`: a config file; it adds its gate.
    `common`: fields of Ablation that all have. Raises ConfigError.
    """
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
    if unknown := [name for name in wanted if name not in ALL]:
        raise ConfigError(f"--ways: there is no {unknown[0]!r}, only {', '.join(ALL)}")
    if CALIBRATED in wanted and calibrated is None:
        raise ConfigError("--ways: calibrated needs --calibrated FILE, a config that main.py --mode calibrate wrote")
    found = [_way(name, common) for name in wanted if name != CALIBRATED]
    found += [_at(gate, common) for gate in dict.fromkeys(thresholds)]
    return [*found, *([_calibrated(calibrated, common)] if calibrated else [])]


def is_gate(ablation: Ablation) -> bool:
    return ablation.name not in (EDGE_ONLY, CLOUD_ONLY.name, LOSSLESS, ROUTE)


def _way(name: str, common: Mapping[str, Any]) -> Ablation:
    if name == EDGE_ONLY:
        fields = {**common.get("fields", {}), "collaboration": {"tokens": True}}  # a router learns from confidences
        text = "the edge answers alone"
        return Ablation(name=name, description=text, mode=Mode.EDGE_ONLY, **{**common, "fields": fields})
    if name == CLOUD_ONLY.name:
        return Ablation(name=name, description=CLOUD_ONLY.description, mode=Mode.CLOUD_ONLY, **common)
    if name == ROUTE:
        text = "the server's router decides which of the two answers"
        return Ablation(name=name, description=text, mode=Mode.ROUTE, **common)
    if name == LOSSLESS:
        text = "F1 off: every draft is verified"
        return Ablation(name=name, description=text, config_overrides={"inference": _features(gate=False)}, **common)
    text = "the gate as the config says"
    return Ablation(name=name, description=text, config_overrides={"inference": _features(gate=True)}, **common)


def _at(gate: str, common: Mapping[str, Any]) -> Ablation:
    try:
        least, least_product, *length = gate.split(",")
        threshold, product, draft = float(least), float(least_product), int(*length) if length else None
    except ValueError as error:
        hint = "CONFIDENCE,PRODUCT or CONFIDENCE,PRODUCT,DRAFT, for example 0.8,0.3 or 0.8,0.3,4"
        raise ConfigError(f"--thresholds takes {hint}, not {gate!r}") from error
    if not (0 <= threshold <= 1 and 0 <= product <= 1):
        raise ConfigError(f"--thresholds takes numbers from 0 to 1, not {gate!r}")
    if draft is not None and not 1 <= draft <= LONGEST_DRAFT:
        raise ConfigError(f"--thresholds takes drafts of 1 to {LONGEST_DRAFT} tokens, not {gate!r}")
    inference, name = _features(gate=True), f"{GATED} {threshold:g}, {product:g}"
    if draft is not None:
        inference["max_draft_tokens"] = draft
        name += f", {draft}"
    return _gate(name, {"threshold": threshold, "product_threshold": product}, inference, common)


def _calibrated(file: str, common: Mapping[str, Any]) -> Ablation:
    """Strategy, thresholds and draft length of a config file."""
    config = configs.load(file)
    confidence = {name: getattr(config.edge.confidence, name) for name in CONFIDENCE_KEYS}
    confidence["strategy"] = str(confidence["strategy"])
    inference = {**_features(gate=True), "max_draft_tokens": config.inference.max_draft_tokens}
    return _gate(CALIBRATED, confidence, inference, common)


def _gate(name: str, confidence: dict[str, Any], inference: dict[str, Any], common: Mapping[str, Any]) -> Ablation:
    text = f"confidence threshold {confidence['threshold']:g}, product threshold {confidence['product_threshold']:g}"
    if "max_draft_tokens" in inference:
        text += f", drafts of up to {inference['max_draft_tokens']} tokens"
    overrides = {"inference": inference, "edge": {"confidence": confidence}}
    return Ablation(name=name, description=text, config_overrides=overrides, **common)


def _features(gate: bool) -> dict[str, Any]:
    return {"features": {"use_confidence_check": gate, "use_draft_verify": True}}
