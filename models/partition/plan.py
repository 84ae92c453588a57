"""Names where to cut a model and which exits to have: predicts every cut, chooses the fastest that fits the edge."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from models.partition import exit_tensors
from models.partition.edge_memory import ExitForm, edge_bytes, layer_weights
from models.partition.model_config import ModelConfig
from models.partition.split_cost import (
    CutCost,
    ModelSizes,
    PlannedExit,
    Surroundings,
    cloud_alone_ms,
    edge_alone_ms,
    predict,
)

MAX_RATED = 8
"""Exits with a rate: all sets of them are compared at each cut."""
MAX_STEPS = 10**7
"""Tokens that are predicted, over all sets and cuts, in minutes: eight exits and very long answers would take days."""


class PlannedCut(msgspec.Struct, frozen=True):
    """The best exits after a cut, with means for each token of an answer and the memory at the edge."""

    cut: int
    """Layers at the edge that every token runs through: those before the first exit."""
    exits: list[int]
    """Layers before each exit; the first is the cut, and is never taken where no rate is known for it."""
    edge_ms: float
    network_ms: float
    cloud_ms: float
    total_ms: float
    asks: float
    """The share of tokens that the cloud is asked for."""
    bytes_up: float
    bytes_down: float
    memory: float
    """Bytes."""
    fits: bool


class CutPlan(msgspec.Struct, frozen=True):
    """All cuts of a model in order; the `best` one's number of layers and the command that makes it."""

    model: str
    layers: int
    cuts: list[PlannedCut]
    best: int
    command: str
    settings: list[str]
    """What edge.split needs for it, as KEY=VALUE."""
    edge_alone_ms: float | None
    """A token of the whole model at the edge, for comparison; None: it does not fit."""
    cloud_alone_ms: float
    """A token of the whole model in the cloud, streamed."""

    @property
    def chosen(self) -> PlannedCut:
        return next(cut for cut in self.cuts if cut.cut == self.best)


@dataclass(frozen=True)
class PlanRequest:
    """What is to be cut, and where: `rates`: shares of tokens that an exit after so many layers is confident of."""

    model: str
    config: ModelConfig
    exits_file: Path | None
    rates: Mapping[int, float]
    quantization: str
    edge_model: EdgeModelConfig
    memory: float
    """Bytes at the edge; infinity: not bounded."""
    around: Surroundings


def whole_model(config: ModelConfig) -> ModelSizes:
    """The sizes of a model by which its cuts are compared."""
    head = config.vocab_size * config.hidden_size / layer_weights(config)
    return ModelSizes(config.num_hidden_layers, config.hidden_size, config.vocab_size, head)


def plan(request: PlanRequest) -> CutPlan:
    """The plan; raises ConfigError if no cut is possible or fits."""
    forms = _forms(request)
    whole = whole_model(request.config)
    if whole.layers < 2:
        raise ConfigError("a model of 1 layer cannot be cut")
    _check_steps(request, forms)
    cuts = [_best_exits(request, whole, forms, cut) for cut in sorted(forms)]
    fitting = [cut for cut in cuts if cut.fits]
    if not fitting:
        least = min(cuts, key=lambda cut: cut.memory)
        needs = f"the smallest, after {least.cut} of {whole.layers} layers, needs {least.memory / 2**20:.0f} MiB"
        raise ConfigError(f"--memory: no cut fits into {request.memory / 2**20:.0f} MiB; {needs}")
    best = min(fitting, key=lambda cut: cut.total_ms)
    alone = edge_bytes(request.config, [whole.layers], [ExitForm()], request.quantization, request.edge_model)
    return CutPlan(
        model=request.model,
        layers=whole.layers,
        cuts=cuts,
        best=best.cut,
        command=_command(request, best),
        settings=_settings(request, best),
        edge_alone_ms=edge_alone_ms(whole, request.around) if alone <= request.memory else None,
        cloud_alone_ms=cloud_alone_ms(whole, request.around),
    )


def _forms(request: PlanRequest) -> dict[int, ExitForm]:
    """What the exit after so many layers has, at all layers where the model can be cut: those of the file, or all."""
    layers = request.config.num_hidden_layers
    if not request.exits_file:
        if wrong := [exit for exit in request.rates if not 1 <= exit < layers]:
            raise ConfigError(f"--exit-rates: no exit is possible after {wrong[0]} of {layers} layers")
        return {layer: ExitForm() for layer in range(1, layers)}
    shapes = exit_tensors.shapes(request.exits_file)
    found = exit_tensors.exits_of(request.exits_file)
    if wrong := [exit for exit in found if not 1 <= exit < layers]:
        raise ConfigError(f"{request.exits_file}: has an exit after {wrong[0]} layers, but the model has {layers}")
    if wrong := [exit for exit in request.rates if exit not in found]:
        raise ConfigError(f"--exit-rates: {request.exits_file} has no exit after {wrong[0]} layers")
    return {
        exit: ExitForm(
            exit_tensors.head_name(exit) in shapes,
            exit_tensors.translator_names(exit)[0] in shapes,
        )
        for exit in found
    }


def _check_steps(request: PlanRequest, cuts: Iterable[int]) -> None:
    """Raises ConfigError where the comparison would not end in time."""
    tokens = request.around.tokens
    if tokens * sum(2 ** len(_useful_exits(request, cut)) for cut in cuts) > MAX_STEPS:
        raise ConfigError(
            f"--exit-rates: to compare all sets of {len(request.rates)} exits takes too long for answers of {tokens} "
            "tokens: give fewer exits, or fewer --tokens"
        )


def _useful_exits(request: PlanRequest, cut: int) -> list[int]:
    return [exit for exit in sorted(request.rates) if exit > cut and request.rates[exit] > 0]


def _best_exits(request: PlanRequest, whole: ModelSizes, forms: Mapping[int, ExitForm], cut: int) -> PlannedCut:
    """The fastest set of exits after this cut that fits; if none fits, the smallest."""
    useful = _useful_exits(request, cut)
    sets = [more for size in range(len(useful) + 1) for more in itertools.combinations(useful, size)]
    found = [_predicted(request, whole, forms, [cut, *more]) for more in sets]
    return min(found, key=lambda one: (not one.fits, one.total_ms if one.fits else one.memory))


def _predicted(request: PlanRequest, whole: ModelSizes, forms: Mapping[int, ExitForm], exits: list[int]) -> PlannedCut:
    planned = [planned_exit(request.config, whole, exit, request.rates.get(exit, 0.0), forms[exit]) for exit in exits]
    cost = predict(whole, planned, request.around)
    memory = edge_bytes(
        request.config, exits, [forms[exit] for exit in exits], request.quantization, request.edge_model
    )
    return _planned(exits, cost, memory, memory <= request.memory)


def planned_exit(config: ModelConfig, whole: ModelSizes, exit: int, rate: float, form: ExitForm) -> PlannedExit:
    """The exit after so many layers, with the work of its head and translator if it is ever taken."""
    translator = config.hidden_size**2 / layer_weights(config) if form.translator else 0.0
    return PlannedExit(exit, rate, whole.head + translator if rate > 0 else 0.0)


def _planned(exits: list[int], cost: CutCost, memory: float, fits: bool) -> PlannedCut:
    return PlannedCut(
        cut=exits[0],
        exits=exits,
        edge_ms=cost.edge_ms,
        network_ms=cost.network_ms,
        cloud_ms=cost.cloud_ms,
        total_ms=cost.total_ms,
        asks=cost.asks,
        bytes_up=cost.bytes_up,
        bytes_down=cost.bytes_down,
        memory=memory,
        fits=fits,
    )


def _command(request: PlanRequest, best: PlannedCut) -> str:
    exits = ",".join(map(str, best.exits))
    file = f" --exits-file {request.exits_file}" if request.exits_file else ""
    output = f"{Path(request.model).name}-split"
    return (
        f"python -m models.partition --model {request.model} --exits {exits}{file} "
        f"--quantize {request.quantization} --output {output}"
    )


def _settings(request: PlanRequest, best: PlannedCut) -> list[str]:
    """Thresholds switch off exits that have no rate; other exits keep the one that their rates were counted with."""
    base = exit_tensors.CONFIDENT_FROM
    thresholds = [base if request.rates.get(exit, 0.0) > 0 else 1.1 for exit in best.exits]
    one = thresholds[:1] if len(set(thresholds)) == 1 else thresholds
    return [f"edge.split.thresholds={one}", f"edge.split.transfer={request.around.encoding.value}"]
