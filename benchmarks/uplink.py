"""Counts the bytes that a verification round sends up at contexts of 100, 1,000 and 4,000 tokens, with F4 on and off.

python -m benchmarks.uplink [--config FILE] [--set KEY=VALUE]

The server is a real cloud server with the model of the config (contexts that it has no room for are left out) or, in
place of the demo's, a small random one; drafts have 8 tokens. Bytes are counted, not timed, so the order of the cases
does not matter and there is no ratio.
"""

import random
import sys

from rich.table import Table

from benchmarks.setup.pair import cloud_model, model_flags
from cli import terminal
from cli.args import config_parser, run_program
from cli.demo import free_ports
from cli.server_process import CLOUD, ServerProcess
from cli.supervisor import Supervisor
from common.cloud_client.pool import CloudPool
from common.cloud_client.verifier import CloudVerifier
from common.config_schema import CommunicationConfig, HttpClientConfig
from common.files.installation import logs
from common.types import GREEDY

CONTEXTS = (100, 1000, 4000)
RANDOM_CONTEXT = 8192
DRAFT = 8
ROUNDS = 5


async def bytes_up(clouds: CloudPool, context: int) -> tuple[int, int]:
    """Bytes of the first round, which carries the prompt, and the maximum over the rounds after it."""
    rng = random.Random(context)
    tokens = [rng.randrange(5, 4096) for _ in range(context)]
    verifier = CloudVerifier(clouds)
    sent = []
    for _ in range(ROUNDS):
        before = verifier.traffic.bytes_up
        verdict = await verifier.verify(tokens, [rng.randrange(5, 4096) for _ in range(DRAFT)], GREEDY, 1)
        sent.append(verifier.traffic.bytes_up - before)
        tokens += verdict.token_ids
    return sent[0], max(sent[1:])


async def main() -> None:
    args = config_parser("Count the bytes that a verification round sends up.").parse_args()
    console = terminal.console()
    table = Table(
        "context, tokens",
        "F4",
        "first round, bytes",
        "later rounds, bytes",
        title="Request body of a round with a draft of 8 tokens",
    )
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    given = cloud_model(args)
    longest = given.context_length if given else RANDOM_CONTEXT
    with model_flags(args, width=256, layers=2, context=RANDOM_CONTEXT) as model:
        flags = [*model, "--host", "127.0.0.1", "--port", str(port)]
        server = ServerProcess("cloud", CLOUD, url, flags, logs() / "uplink.log")
        async with Supervisor([server], console.print).running():
            for optimized in (True, False):
                http = HttpClientConfig(timeout=600.0, first_byte_timeout=600.0, optimized=optimized)
                async with CloudPool(CommunicationConfig(cloud_endpoint=url, http_client=http)) as clouds:
                    for context in (c for c in CONTEXTS if c + ROUNDS * (DRAFT + 1) < longest):
                        first, later = await bytes_up(clouds, context)
                        table.add_row(str(context), "on" if optimized else "off", str(first), str(later))
    console.print(table)


if __name__ == "__main__":
    sys.exit(run_program(main()))
