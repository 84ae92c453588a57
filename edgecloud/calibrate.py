"""Fits thresholds, or a router, to questions of your own: edgecloud calibrate, or python main.py --mode calibrate."""

import argparse
from functools import partial
from pathlib import Path

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.report import CalibratedConfig
from calibration.routing import calibrate_router
from calibration.target import CalibrationTarget
from cli import terminal
from cli.args import config_parser, run_with_config
from common.config_schema import Config
from common.errors import ConfigError
from common.files.installation import CHECKOUT
from common.http_client import EdgeCloudHTTPClient
from common.routing.router import MOST_TOKENS
from common.types import Mode

ROUTER_TOKENS = 8
CALIBRATED = Path("config/calibrated.yaml" if CHECKOUT else "calibrated.yaml")


def parser() -> argparse.ArgumentParser:
    options = config_parser("Find confidence thresholds for a target with your own questions; both servers must run.")
    add_flags(options.add_argument_group("calibration", "give one of the first three, and --data"))
    modes = Mode.COLLABORATIVE, Mode.SPLIT
    options.add_argument(
        "--mode",
        type=Mode,
        choices=modes,
        default=Mode.COLLABORATIVE,
        help="whose thresholds: of the gate, or of a split model's exits (default: %(default)s)",
    )
    options.add_argument(
        "--max-tokens", type=int, default=128, help="length limit of an answer, in tokens (default: 128)"
    )
    return options


def add_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target-quality", type=float, help="share of the cloud's right answers to keep, e.g. 0.98")
    group.add_argument(
        "--target-cloud-rate", type=float, help="share of answer tokens that the cloud computes or verifies, e.g. 0.3"
    )
    group.add_argument(
        "--max-risk", type=float, help="share of prompts that may get a worse answer than the cloud's, e.g. 0.05"
    )
    group.add_argument(
        "--confidence", type=float, default=0.95, help="probability with which --max-risk is kept (default: 0.95)"
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='JSON lines of {"prompt": ..., "answer": ...}, the answer optional; or HumanEval.jsonl.gz',
    )
    group.add_argument(
        "--router",
        type=Path,
        metavar="FILE",
        help="fit the router of mode route in place of the gate, and write it to FILE",
    )
    group.add_argument(
        "--router-tokens",
        type=int,
        default=ROUTER_TOKENS,
        metavar="N",
        help="with --router: the edge's first tokens that it looks at; 0: only the prompt (default: %(default)s)",
    )
    group.add_argument(
        "--output", type=Path, metavar="FILE", default=CALIBRATED, help=f"config file to write (default: {CALIBRATED})"
    )


def run(args: argparse.Namespace) -> int:
    return run_with_config(args, partial(calibrate_gate, args, split=args.mode == Mode.SPLIT))


async def calibrate_gate(args: argparse.Namespace, config: Config, split: bool) -> None:
    """Finds thresholds for the running servers and writes them into a config file of their own.

    `split`: those of a split model's exits, for which the cloud server suffices.
    """
    target = CalibrationTarget.of(args)
    if args.data is None:
        raise ConfigError("calibrate needs --data FILE.jsonl; python -m models.heldout writes one for the demo models")
    request = CalibrationRequest(target, args.data, CalibratedConfig(args.output, args.config), args.max_tokens)
    if not 0 <= args.router_tokens <= MOST_TOKENS:
        raise ConfigError(f"--router-tokens must be from 0 to {MOST_TOKENS}, not {args.router_tokens}")
    if split and args.router is not None:
        raise ConfigError("--router: is of mode route, the thresholds of exits are of mode split; fit one of them")
    if split:
        from calibration.split.calibrate import calibrate_split  # loads llama.cpp, which nothing else here needs

        await calibrate_split(config, request, terminal.console())
        return
    async with EdgeCloudHTTPClient.of(config) as client:
        if args.router is not None:
            await calibrate_router(client, request, args.router, args.router_tokens, terminal.console())
        else:
            await calibrate(client, config, request, terminal.console())
