"""Serves an edge of a split model whose cloud keeps nothing from one token to the next: the context manager's ablation.

python -m experiments.split.forgetful_edge [--host HOST] [--port PORT] [--config FILE] [--set KEY=VALUE]

It is the project's edge but for one thing: each token of the cloud is asked for in a session of its own. So the states
of the whole context go up each time, and the cloud computes all of them again.
"""

import sys

from cli.args import config_parser, load_config, run_program, set_up_logging
from common.cloud_client.split_session import CloudToken
from common.http_server import serve
from common.types import Sampling
from edge.edge_server import build_app
from edge.llama import model_file
from edge.llama.batch import States
from edge.split.cloud_tail import CloudTail
from edge.split.engine import EdgeInferenceEngine


class ForgetfulTail(CloudTail):
    """Ends its session after each token."""

    async def token(self, states: States, sampling: Sampling, top: int = 0) -> CloudToken:
        token = await super().token(states, sampling, top)
        if self._session is not None:
            self._session.close()
            self._earlier.append(self._session)
            self._session, self._computed_to = None, 0
        return token


async def main() -> None:
    parser = config_parser("Start an edge whose cloud keeps nothing of a split model's answer, for comparison.")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="TCP port; 0: any free one")
    args = parser.parse_args()
    config = load_config(args, edge__server__host=args.host, edge__server__port=args.port)
    set_up_logging(config.logging.level)
    EdgeInferenceEngine.tail_class = ForgetfulTail
    await serve(build_app(await model_file.prepared(config)), config.edge.server, "forgetful edge")


if __name__ == "__main__":
    sys.exit(run_program(main()))
