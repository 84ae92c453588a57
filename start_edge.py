"""Starts one edge server: python start_edge.py [--config FILE] [--host HOST] [--port PORT] [--model MODEL]"""

import sys

from msgspec.structs import replace

from cli.args import config_parser, load_config, run_program, set_up_logging
from common import model_root
from common.http_server import serve
from edge.edge_server import build_app
from edge.llama import model_file


async def main() -> None:
    parser = config_parser("Start one edge server (llama.cpp).")
    parser.add_argument("--host", help="address to listen on (default: edge.server.host)")
    parser.add_argument("--port", type=int, help="TCP port; 0: any free one (default: edge.server.port)")
    parser.add_argument(
        "--model",
        help="GGUF file, a folder with one, or a Hugging Face id owner/name[:pattern] (default: edge.model.path)",
    )
    args = parser.parse_args()
    model = {"edge__model__path": args.model, "edge__model__local": "''" if args.model else None}
    config = load_config(args, edge__server__host=args.host, edge__server__port=args.port, **model)
    set_up_logging(config.logging.level)
    chosen = model_root.edge_model(config)
    file = await model_file.prepare(chosen)
    config = replace(config, edge=replace(config.edge, model=replace(chosen, path=str(file))))
    await serve(build_app(config), config.edge.server, "edge server")


if __name__ == "__main__":
    sys.exit(run_program(main()))
