"""Keeps what an edge server has learned in a small file, so that a restarted one need not learn it again."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from common.decoding.acceptance import PLACES, Acceptance, HazardRatio
from common.decoding.estimates import Estimates
from common.decoding.fading import Gain, LinearEstimate, Mean
from common.types import VerificationMode

log = logging.getLogger(__name__)
FILE = "estimates.json"
Share = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0, le=1e12)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]


class SavedEstimates(Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content. `pair` names the models and clouds that it was learned with; another pair does not use it.

    `network` and `verify` are the sums of a `LinearEstimate`, `gains` the tokens observed and expected.
    """

    pair: str
    chances: Annotated[list[Share], Meta(min_length=PLACES, max_length=PLACES)]
    by_confidence: tuple[Positive, Positive]
    network: tuple[Amount, Amount, Amount, Amount, float]
    verify: tuple[Amount, Amount, Amount, Amount, float]
    draft_seconds: Amount | None
    bytes_per_round: Amount | None
    gains: dict[VerificationMode, tuple[Positive, Positive]]


def save(estimates: Estimates, folder: Path, pair: str) -> None:
    """Writes the file, whole or not at all; a folder that cannot be written to is logged."""
    acceptance = estimates.acceptance
    assert isinstance(acceptance, Acceptance), "the estimates of all answers"
    saved = SavedEstimates(
        pair=pair,
        chances=acceptance.chances,
        by_confidence=(acceptance.by_confidence.events, acceptance.by_confidence.exposure),
        network=estimates.network.sums,
        verify=estimates.verify.sums,
        draft_seconds=estimates.draft.value,
        bytes_per_round=estimates.bytes_per_round.value,
        gains={mode: (gain.observed, gain.expected) for mode, gain in estimates.gains.items()},
    )
    part = folder / f"{FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(saved))
        os.replace(part, folder / FILE)
    except OSError as error:
        log.warning("what was learned cannot be kept in %s: %s", folder, error)


def load(folder: Path, pair: str) -> Estimates:
    """What the file holds; nothing learned where there is none, it is damaged, or it is of another pair."""
    try:
        saved = msgspec.json.decode((folder / FILE).read_bytes(), type=SavedEstimates)
    except FileNotFoundError:
        return Estimates()
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s is not used: %s", folder / FILE, error)
        return Estimates()
    if saved.pair != pair:
        return Estimates()
    fresh = Estimates()
    return dataclasses.replace(
        fresh,
        network=LinearEstimate.of(fresh.network, saved.network),
        draft=Mean(saved.draft_seconds),
        verify=LinearEstimate.of(fresh.verify, saved.verify),
        acceptance=Acceptance(list(saved.chances), HazardRatio(*saved.by_confidence)),
        bytes_per_round=Mean(saved.bytes_per_round),
        gains=fresh.gains | {mode: Gain(*gain) for mode, gain in saved.gains.items()},
    )
