"""Starts one edge server: edgecloud edge, or python start_edge.py."""

import argparse
import sys

from cli.args import config_parser, load_config, run_program, set_up_logging
from common.http_server import serve
from common.tracing.export import exported
from edge.edge_server import build_app
from edge.llama import model_file


def parser() -> argparse.ArgumentParser:
    options = config_parser("Start one edge server (llama.cpp).")
    options.add_argument("--host", help="address to listen on (default: edge.server.host)")
    options.add_argument("--port", type=int, help="TCP port; 0: any free one (default: edge.server.port)")
    options.add_argument(
        "--model",
        help="GGUF file, a folder with one, or a Hugging Face id owner/name[:pattern] (default: edge.model.path)",
    )
    return options


def run(args: argparse.Namespace) -> int:
    return run_program(_serve(args))


async def _serve(args: argparse.Namespace) -> None:
    model = {"edge__model__path": args.model, "edge__model__local": "''" if args.model else None}
    config = load_config(args, edge__server__host=args.host, edge__server__port=args.port, **model)
    set_up_logging(config.logging.level)
    config = await model_file.prepared(config)
    with exported("edgecloud-edge", config.logging.traces):
        await serve(build_app(config), config.edge.server, "edge server")


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
