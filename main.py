"""The main program: python main.py --mode server | client | interactive | demo | calibrate | standalone | split

A split model: python main.py --cloud-server in one terminal, --mode split in another; --mode standalone needs no cloud.
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from msgspec.structs import replace

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.report import CalibratedConfig
from calibration.target import CalibrationTarget
from cli import terminal
from cli.args import config_parser, load_config, run_program, set_up_logging
from cli.ask import QuestionSettings, ask
from cli.demo import config_flags, demo_servers
from cli.interactive import repl
from cli.supervisor import ServerProcess, Supervisor
from common.config_schema import Config
from common.errors import ConfigError, RequestError
from common.http_client import EdgeCloudHTTPClient
from common.protocol.split_manifest import DEMO
from common.types import Sampling

CALIBRATED = Path("config/calibrated.yaml")
PROMPT = "What is AI?"
"""Asked by the modes that need no --prompt."""
MODES = {
    "server": "start both servers, restart one that dies, until Ctrl-C",
    "client": "send one prompt to a running edge server",
    "interactive": "send many prompts to a running edge server",
    "demo": "start both servers, answer one prompt, stop both",
    "calibrate": "find confidence thresholds for a target with your own questions; both servers must run",
    "split": "answer one prompt with a split model: its first layers run in this process, the last ones in a cloud "
    "(start that with --cloud-server)",
    "collaborative": "the original name of split",
    "standalone": "answer one prompt with the first layers of a split model alone, without a cloud",
}


def parse() -> argparse.Namespace:
    parser = config_parser("Edge-cloud inference of large language models on llama.cpp (edge) and vLLM (cloud).")
    what = parser.add_mutually_exclusive_group(required=True)
    modes = "; ".join(f"{name}: {meaning}" for name, meaning in MODES.items())
    what.add_argument("--mode", choices=MODES, help=modes)
    what.add_argument("--cloud-server", action="store_true", help="start a cloud server for --mode split, until Ctrl-C")
    _add_answer(parser.add_argument_group("answers"))
    _add_calibration(parser.add_argument_group("--mode calibrate", "give one of the first three, and --data"))
    return parser.parse_args()


def _add_answer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt", help=f"the question; needed by client; default of demo, standalone and split: {PROMPT}"
    )
    group.add_argument(
        "--max-tokens", type=int, default=128, help="length limit of an answer, in tokens (default: 128)"
    )
    group.add_argument("--temperature", type=float, default=0.8, help="sampling temperature; 0: greedy (default: 0.8)")
    group.add_argument("--stream", action="store_true", help="client, standalone, split: print tokens as they come")
    group.add_argument(
        "--no-draft-verify",
        action="store_true",
        help="switch F2 off: the cloud generates tokens itself instead of verifying the edge's drafts",
    )
    group.add_argument(
        "--no-confidence-check",
        action="store_true",
        help="switch F1 off: the cloud verifies every draft (lossless)",
    )
    group.add_argument(
        "--threshold",
        type=float,
        help="standalone, split: confidence from which an exit's token is taken, 0 to 1; above 1: never "
        "(default: edge.split.thresholds of the config)",
    )


def _add_calibration(group: argparse._ArgumentGroup) -> None:
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
        "--output", type=Path, metavar="FILE", default=CALIBRATED, help=f"config file to write (default: {CALIBRATED})"
    )


async def main() -> None:
    args = parse()
    config = load_config(args)
    settings = QuestionSettings(
        args.max_tokens,
        args.temperature,
        use_draft_verify=False if args.no_draft_verify else None,
        use_confidence_check=False if args.no_confidence_check else None,
    )
    if args.cloud_server:
        await serve_cloud(args, config)
        return
    match args.mode:
        case "server":
            await serve(args, config)
        case "standalone" | "split" | "collaborative":
            await answer_split(args, config)
        case "client":
            await answer(config, args.prompt, settings, args.stream)
        case "interactive":
            async with EdgeCloudHTTPClient.of(config) as client:
                await repl(client, config, settings, terminal.console())
        case "demo":
            await demo(args, args.prompt or PROMPT, settings)
        case "calibrate":
            await calibrate_gate(args, config)


async def serve(args: argparse.Namespace, config: Config) -> None:
    """Both servers until Ctrl-C or SIGTERM."""
    cloud, edge = config.cloud.server, config.edge.server
    flags = config_flags(args)
    await supervise(
        config,
        ServerProcess("cloud", "start_cloud.py", f"http://{cloud.host}:{cloud.port}", flags),
        ServerProcess("edge", "start_edge.py", f"http://{edge.host}:{edge.port}", flags),
    )


async def serve_cloud(args: argparse.Namespace, config: Config) -> None:
    """A cloud with a split model's tail, the demo's unless the config names one, until Ctrl-C or SIGTERM."""
    cloud = config.cloud.server
    flags = config_flags(args)
    if not config.cloud.split.manifest:
        flags += ["--set", f"cloud.split.manifest={DEMO}"]
    await supervise(config, ServerProcess("cloud", "start_cloud.py", f"http://{cloud.host}:{cloud.port}", flags))


async def supervise(config: Config, *servers: ServerProcess) -> None:
    """Starts the servers, restarts one that dies, and stops all on Ctrl-C or SIGTERM."""
    set_up_logging(config.logging.level)
    with contextlib.suppress(asyncio.CancelledError):
        async with Supervisor([*servers]).running():
            await asyncio.Event().wait()


async def answer_split(args: argparse.Namespace, config: Config) -> None:
    """One answer of a split model, the demo's unless the config names one; its first layers run in this process."""
    from cli import split  # loads llama.cpp, which the other modes do not need

    own = config.edge.split
    config = replace(config, edge=replace(config.edge, split=replace(own, manifest=own.manifest or str(DEMO))))
    question = split.SplitQuestion(
        prompt=PROMPT if args.prompt is None else args.prompt,
        sampling=Sampling(temperature=args.temperature),
        max_tokens=args.max_tokens,
        standalone=args.mode == "standalone",
        threshold=args.threshold,
        stream=args.stream,
    )
    console = terminal.console()
    console.print(question.prompt, style="bold")
    await split.ask(config, question, console)


async def answer(config: Config, prompt: str | None, settings: QuestionSettings, stream: bool) -> None:
    if prompt is None:
        raise RequestError("--mode client needs --prompt")
    async with EdgeCloudHTTPClient.of(config) as client:
        await ask(client, prompt, settings, terminal.console(), stream)


async def demo(args: argparse.Namespace, prompt: str, settings: QuestionSettings) -> None:
    """Both servers on free ports, one answer, everything stopped again."""
    console = terminal.console()
    async with demo_servers(args, console.print) as (edge, cloud):
        config = load_config(args, communication__edge_endpoint=edge, communication__cloud_endpoint=cloud)
        async with EdgeCloudHTTPClient.of(config) as client:
            console.print(f"\n{prompt}", style="bold")
            await ask(client, prompt, settings, console)


async def calibrate_gate(args: argparse.Namespace, config: Config) -> None:
    """Finds thresholds for the running servers and writes them into a config file of their own."""
    target = CalibrationTarget.of(args)
    if args.data is None:
        raise ConfigError(
            "--mode calibrate needs --data FILE.jsonl; python -m models.heldout writes one for the demo models"
        )
    request = CalibrationRequest(target, args.data, CalibratedConfig(args.output, args.config), args.max_tokens)
    async with EdgeCloudHTTPClient.of(config) as client:
        await calibrate(client, config, request, terminal.console())


if __name__ == "__main__":
    sys.exit(run_program(main()))
