"""The command that plans a cut: its flags, what it refuses, and its table.

python -m models.partition --model FOLDER --plan --edge-speed 25t/s --cloud-speed 0.4ms+3ms --rtt 14 --uplink 20
                           [--memory 2GiB] [--states fp16] [--exits-file FILE | --exit-rates 14:0.4,21:0.6] [--json]
"""

import argparse
import math
import shlex

import msgspec
from rich.table import Table

from cli.terminal import console
from common import config as configs
from common.errors import ConfigError
from common.types import StateEncoding
from models.partition.checkpoint import find
from models.partition.exit_tensors import confident_shares, shapes
from models.partition.model_config import read_config
from models.partition.plan import MAX_RATED, CutPlan, PlanRequest, plan, whole_model
from models.partition.split_cost import EngineSpeed, ModelSizes, NetworkSpeed, Surroundings

UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
SMALLEST, LARGEST = 1e-6, 1e15
"""Numbers outside are mistakes, and would overflow."""
MAX_TOKENS = 8192
CONFIG = "config.json"
"""The only file of the model that a plan needs."""


def add_options(options: argparse.ArgumentParser) -> None:
    group = options.add_argument_group("plan", "names the best cut instead of cutting; by a cost model, see docs")
    group.add_argument("--plan", action="store_true", help="predict all cuts, and name the best")
    speed = "milliseconds a layer, e.g. 0.8ms, or with a fixed part a step, 0.8ms+2ms; or tokens of the whole model"
    group.add_argument("--edge-speed", metavar="SPEED", help=f"{speed}, e.g. 25t/s")
    group.add_argument("--cloud-speed", metavar="SPEED", help="the same for the cloud")
    group.add_argument("--rtt", metavar="MS", help="round trip in milliseconds")
    group.add_argument("--uplink", metavar="MBIT", help="Mbit/s from the edge to the cloud")
    group.add_argument("--memory", metavar="SIZE", help="memory of the edge, e.g. 2GiB (default: not bounded)")
    group.add_argument("--states", default="fp16", help="fp16, int8 or fp32: how states travel (default: fp16)")
    group.add_argument(
        "--exit-rates",
        metavar="LAYERS:SHARE,...",
        help="shares of tokens that exits are confident of, e.g. 14:0.4,21:0.6 (default: the exits file's, or none)",
    )
    group.add_argument(
        "--tokens", metavar="PROMPT,ANSWER", default="100,100", help="of a usual answer (default: %(default)s)"
    )
    group.add_argument("--json", action="store_true", help="print the plan as JSON")


def run_plan(args: argparse.Namespace) -> None:
    """Prints the plan; raises ConfigError for numbers that are wrong, missing or impossible."""
    found = plan(_request(args))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    console().print(as_table(found))
    alone = {"in the cloud": found.cloud_alone_ms}
    if found.edge_alone_ms is not None:
        alone["at the edge"] = found.edge_alone_ms
    console().print("whole model: " + ", ".join(f"{ms:.1f} ms a token {where}" for where, ms in alone.items()))
    if (least := min(alone, key=alone.__getitem__)) and alone[least] < found.chosen.total_ms:
        console().print(f"the whole model {least} is predicted to be faster than any cut")
    console().print(f"best: {found.command}", soft_wrap=True)
    console().print("then: " + " ".join(f"--set {shlex.quote(each)}" for each in found.settings), soft_wrap=True)


def as_table(found: CutPlan) -> Table:
    title = f"Cuts of {found.model}: ms and bytes a token of an answer; MiB at the edge"
    table = Table("", "cut", "exits", title=title, title_justify="left")
    for head in ("edge", "network", "cloud", "total", "asks", "bytes", "MiB"):
        table.add_column(head, justify="right")
    for cut in found.cuts:
        numbers = [f"{ms:.1f}" for ms in (cut.edge_ms, cut.network_ms, cut.cloud_ms, cut.total_ms)]
        numbers += [f"{cut.asks:.0%}", f"{cut.bytes_up + cut.bytes_down:.0f}", f"{cut.memory / 2**20:.0f}"]
        mark = "best" if cut.cut == found.best else "" if cut.fits else "too large"
        style = "bold" if cut.cut == found.best else None if cut.fits else "dim"
        table.add_row(mark, str(cut.cut), ",".join(map(str, cut.exits)), *numbers, style=style)
    return table


def _request(args: argparse.Namespace) -> PlanRequest:
    config = read_config(find(args.model, [CONFIG]) / CONFIG)
    whole = whole_model(config)
    prompt, tokens = _tokens(args.tokens)
    rates = _rates(args.exit_rates) if args.exit_rates else {}
    if args.exits_file:
        shapes(args.exits_file)  # is it one?
        rates = rates or confident_shares(args.exits_file)
    if len(rates) > MAX_RATED:
        raise ConfigError(f"--exit-rates: {len(rates)} exits; at most {MAX_RATED} can be compared")
    around = Surroundings(
        edge=speed_of("--edge-speed", args.edge_speed, whole),
        cloud=speed_of("--cloud-speed", args.cloud_speed, whole),
        network=NetworkSpeed(_number("--rtt", args.rtt, or_zero=True), _number("--uplink", args.uplink)),
        encoding=_encoding(args.states),
        prompt=prompt,
        tokens=tokens,
    )
    memory = _size("--memory", args.memory) if args.memory else math.inf
    edge_model = configs.load(None, []).edge.model
    return PlanRequest(args.model, config, args.exits_file, rates, args.quantize, edge_model, memory, around)


def speed_of(flag: str, text: str | None, whole: ModelSizes) -> EngineSpeed:
    """`0.8ms` a layer, `0.8ms+2ms` a layer and a step, or `25t/s` of the whole model."""
    if text is None:
        raise ConfigError(f"--plan needs {flag}")
    given = text.replace(" ", "")
    if given.endswith("t/s"):
        return EngineSpeed(1e3 / _number(flag, given.removesuffix("t/s")) / (whole.layers + whole.head))
    parts = given.split("+")
    if len(parts) > 2 or not all(part.endswith("ms") for part in parts):
        raise ConfigError(
            f"{flag} {text}: give ms a layer, like 0.8ms or 0.8ms+2ms, or tokens of the model, like 25t/s"
        )
    numbers = [_number(flag, part.removesuffix("ms"), or_zero=at > 0) for at, part in enumerate(parts)]
    return EngineSpeed(*numbers)


def _number(flag: str, text: str | None, or_zero: bool = False) -> float:
    if text is None:
        raise ConfigError(f"--plan needs {flag}")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (SMALLEST <= number <= LARGEST or (or_zero and number == 0)):
        raise ConfigError(f"{flag} {text}: must be a number {'of 0 or more' if or_zero else 'above 0'}")
    return number


def _size(flag: str, text: str) -> float:
    """Bytes: a number, alone or with a unit."""
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(digits) :].strip().lower()
    if unit not in UNITS:
        raise ConfigError(f"{flag} {text}: give a size like 2GiB or 512MiB")
    return _number(flag, digits) * UNITS[unit]


def _encoding(text: str) -> StateEncoding:
    try:
        return StateEncoding(text)
    except ValueError as error:
        raise ConfigError(f"--states {text}: must be {', '.join(StateEncoding)}") from error


def _tokens(text: str) -> tuple[int, int]:
    try:
        prompt, answer = map(int, text.split(","))
    except ValueError as error:
        raise ConfigError(f"--tokens {text}: give those of a prompt and of its answer, like 100,100") from error
    if not (1 <= prompt <= MAX_TOKENS and 1 <= answer <= MAX_TOKENS):
        raise ConfigError(f"--tokens {text}: both must be 1 to {MAX_TOKENS}")
    return prompt, answer


def _rates(text: str) -> dict[int, float]:
    rates: dict[int, float] = {}
    for part in text.split(","):
        layers, _, share = part.partition(":")
        try:
            exit, rate = int(layers), float(share)
        except ValueError as error:
            raise ConfigError(f"--exit-rates {text}: give layers and shares, like 14:0.4,21:0.6") from error
        if exit in rates or not 0 <= rate <= 1:
            raise ConfigError(f"--exit-rates {text}: each exit once, with a share of 0 to 1")
        rates[exit] = rate
    return rates
