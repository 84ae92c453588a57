"""The program people start: python main.py --mode server | client | interactive | demo | calibrate

A split model: python main.py --cloud-server, then --mode collaborative; or --mode standalone by itself.
"""

import argparse
import asyncio
import contextlib
import sys
from pathlib import Path

from msgspec.structs import replace

from calibration.calibrate import CalibrationTarget, Sources, calibrate
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


def parse() -> argparse.Namespace:
    parser = config_parser("Edge-cloud inference on llama.cpp and vLLM.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--mode",
        choices=("server", "client", "interactive", "demo", "calibrate", "standalone", "collaborative"),
        help="server: start and supervise both servers; client: one prompt; interactive: many; "
        "demo: start both, answer one prompt, stop both; calibrate: fit the gate's thresholds to questions of yours; "
        "standalone: one prompt to a split model, the edge alone; collaborative: with a cloud that has its last layers",
    )
    what.add_argument("--cloud-server", action="store_true", help="start a cloud with the last layers of a split model")
    parser.add_argument("--prompt", help="the question (client, demo, standalone, collaborative)")
    parser.add_argument("--threshold", type=float, help="of a split model's exits, in place of the config's")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest answer, in tokens (default 128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default 0.8)")
    parser.add_argument("--no-draft-verify", action="store_true", help="switch F2 off")
    parser.add_argument("--no-confidence-check", action="store_true", help="switch F1 off")
    parser.add_argument("--stream", action="store_true", help="print the answer as it comes")
    _add_calibration(parser.add_argument_group("calibrate (the servers run)"))
    return parser.parse_args()


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target-quality", type=float, help="right answers relative to the cloud's, e.g. 0.98")
    group.add_argument("--target-cloud-rate", type=float, help="share of answer tokens that the cloud sees, e.g. 0.3")
    group.add_argument("--max-risk", type=float, help="share of prompts that may get a worse answer, e.g. 0.05")
    group.add_argument("--confidence", type=float, default=0.95, help="how surely --max-risk is kept (default 0.95)")
    group.add_argument(
        "--data", type=Path, metavar="FILE", help='lines of {"prompt": ..., "answer": ...}, answer optional'
    )
    group.add_argument(
        "--output", type=Path, metavar="FILE", default=CALIBRATED, help=f"config to write ({CALIBRATED})"
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
        case "standalone" | "collaborative":
            await split(args, config)
        case "client":
            await answer(config, args.prompt, settings, args.stream)
        case "interactive":
            async with EdgeCloudHTTPClient.of(config) as client:
                await repl(client, config, settings, terminal.console())
        case "demo":
            await demo(args, args.prompt or "What is AI?", settings)
        case "calibrate":
            await calibrated(args, config)


async def serve(args: argparse.Namespace, config: Config) -> None:
    """Both servers until Ctrl-C or SIGTERM."""
    set_up_logging(config.logging.level)
    cloud, edge = config.cloud.server, config.edge.server
    flags = config_flags(args)
    servers = [
        ServerProcess("cloud", "start_cloud.py", f"http://{cloud.host}:{cloud.port}", flags),
        ServerProcess("edge", "start_edge.py", f"http://{edge.host}:{edge.port}", flags),
    ]
    with contextlib.suppress(asyncio.CancelledError):
        async with Supervisor(servers).running():
            await asyncio.Event().wait()


async def serve_cloud(args: argparse.Namespace, config: Config) -> None:
    """A cloud with a split model's tail, the demo's unless the config names one, until Ctrl-C or SIGTERM."""
    set_up_logging(config.logging.level)
    where = config.cloud.server
    named = [] if config.cloud.split.manifest else ["--set", f"cloud.split.manifest={DEMO}"]
    server = ServerProcess("cloud", "start_cloud.py", f"http://{where.host}:{where.port}", config_flags(args) + named)
    with contextlib.suppress(asyncio.CancelledError):
        async with Supervisor([server]).running():
            await asyncio.Event().wait()


async def split(args: argparse.Namespace, config: Config) -> None:
    """One answer of a split model, the demo's unless the config names one; its first layers run in this process."""
    from cli.split import ask as ask_split

    own = config.edge.split
    config = replace(config, edge=replace(config.edge, split=replace(own, manifest=own.manifest or str(DEMO))))
    console, prompt = terminal.console(), "What is AI?" if args.prompt is None else args.prompt
    console.print(prompt, style="bold")
    await ask_split(
        config,
        prompt,
        console,
        standalone=args.mode == "standalone",
        threshold=args.threshold,
        max_tokens=args.max_tokens,
        sampling=Sampling(temperature=args.temperature),
        stream=args.stream,
    )


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


async def calibrated(args: argparse.Namespace, config: Config) -> None:
    """Thresholds for the servers that run, in a config file of their own."""
    objective = CalibrationTarget.of(args)
    if args.data is None:
        raise ConfigError(
            "--mode calibrate needs --data FILE.jsonl; python -m models.heldout writes one for the demo pair"
        )
    async with EdgeCloudHTTPClient.of(config) as client:
        sources = Sources(args.data, args.output, args.config)
        await calibrate(client, config, objective, sources, args.max_tokens, terminal.console())


if __name__ == "__main__":
    sys.exit(run_program(main()))
