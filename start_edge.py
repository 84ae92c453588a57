"""Starts one edge server: python start_edge.py [--config FILE] [--host HOST] [--port PORT] [--model FILE.gguf]"""

import sys

from common import cli
from common.http_server import serve
from edge.edge_server import build_app


async def main() -> None:
    parser = cli.parser("Start one edge server (llama.cpp).")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port; 0: any free one")
    parser.add_argument("--model", metavar="FILE", help="GGUF file")
    args = parser.parse_args()
    config = cli.load_config(
        args, edge__server__host=args.host, edge__server__port=args.port, edge__model__path=args.model
    )
    cli.set_up_logging(config.logging.level)
    await serve(build_app(config), config.edge.server, "edge server")


if __name__ == "__main__":
    sys.exit(cli.run(main()))
