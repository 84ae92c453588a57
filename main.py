"""The main program: python main.py --mode server | client | interactive | demo | calibrate | standalone | split

A split model: python main.py --cloud-server in one terminal, --mode split in another; --mode standalone needs no cloud.
"""

import argparse
import sys

from msgspec.structs import replace

from cli import terminal
from cli.args import amount, config_parser, load_config, run_program
from cli.demo import config_flags
from common.config_schema import Config
from common.errors import RequestError
from common.protocol.split_manifest import DEMO
from common.types import Sampling
from edgecloud import answers, ask, calibrate, chat, demo, serve

MODES = {
    "server": "start both servers, restart one that dies, until Ctrl-C",
    "client": "send one prompt to a running edge server",
    "interactive": "converse with a running edge server",
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
    calibration = parser.add_argument_group("--mode calibrate", "give one of the first three, and --data")
    calibrate.add_flags(calibration)
    calibration.add_argument(
        "--split", action="store_true", help="thresholds of a split model's exits, not of the gate"
    )
    return parser.parse_args()


def _add_answer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt", help=f"the question; needed by client; default of demo, standalone and split: {answers.PROMPT}"
    )
    answers.add_flags(group)
    group.add_argument("--stream", action="store_true", help="client, standalone, split: print tokens as they come")
    group.add_argument(
        "--threshold",
        type=amount,
        help="standalone, split: confidence from which an exit's token is taken, 0 to 1; above 1: never "
        "(default: edge.split.thresholds of the config)",
    )


WITHOUT_PROMPT = ("server", "interactive", "calibrate")


async def main() -> None:
    args = parse()
    if args.prompt is not None and (args.cloud_server or args.mode in WITHOUT_PROMPT):
        raise RequestError("--prompt: this mode takes none; client, demo, split and standalone answer one")
    config = load_config(args)
    settings = answers.settings_of(args)
    if args.cloud_server:
        await serve_cloud(args, config)
        return
    match args.mode:
        case "server":
            await serve.serve(args, config)
        case "standalone" | "split" | "collaborative":
            await answer_split(args, config)
        case "client":
            if args.prompt is None:
                raise RequestError("--mode client needs --prompt")
            await ask.answer(config, args.prompt, settings, args.stream)
        case "interactive":
            await chat.converse(config, settings)
        case "demo":
            await demo.demo(args, args.prompt or answers.PROMPT, settings)
        case "calibrate":
            await calibrate.calibrate_gate(args, config, split=args.split)


async def serve_cloud(args: argparse.Namespace, config: Config) -> None:
    """A cloud with a split model's tail, the demo's unless the config names one, until Ctrl-C or SIGTERM."""
    flags = config_flags(args)
    if not config.cloud.split.manifest:
        flags += ["--set", f"cloud.split.manifest={DEMO}"]
    await serve.supervise(config, serve.cloud_process(config, flags))


async def answer_split(args: argparse.Namespace, config: Config) -> None:
    """One answer of a split model, the demo's unless the config names one; its first layers run in this process."""
    from cli import split  # loads llama.cpp, which the other modes do not need

    own = config.edge.split
    config = replace(config, edge=replace(config.edge, split=replace(own, manifest=own.manifest or str(DEMO))))
    question = split.SplitQuestion(
        prompt=answers.PROMPT if args.prompt is None else args.prompt,
        sampling=Sampling(temperature=args.temperature),
        max_tokens=args.max_tokens,
        standalone=args.mode == "standalone",
        threshold=args.threshold,
        stream=args.stream,
    )
    console = terminal.console()
    console.print(question.prompt, style="bold")
    await split.ask(config, question, console)


if __name__ == "__main__":
    sys.exit(run_program(main()))
