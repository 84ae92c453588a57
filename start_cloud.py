"""Starts one cloud server: python start_cloud.py [--config FILE] [--host HOST] [--port PORT] [--model PATH]"""

import sys

from cloud.cloud_server import build_app
from common import cli
from common.http_server import serve


async def main() -> None:
    parser = cli.parser("Start one cloud server (vLLM).")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port; 0: any free one")
    parser.add_argument("--model", metavar="PATH", help="model folder or hub id")
    args = parser.parse_args()
    config = cli.load_config(
        args, cloud__server__host=args.host, cloud__server__port=args.port, cloud__model__path=args.model
    )
    cli.set_up_logging(config.logging.level)
    await serve(build_app(config), config.cloud.server.host, config.cloud.server.port, "cloud server")


if __name__ == "__main__":
    sys.exit(cli.run(main()))
