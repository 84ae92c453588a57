"""Compares edge servers with a custom confidence strategy (F1): python examples/custom_strategy.py

To select such a strategy in the config, add its name to `ConfidenceStrategy` (common/types.py) and the function to
`STRATEGIES` (edge/confidence.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # makes the project importable without installing it

import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from cli.args import client_config, run_program
from common.config_schema import Config
from common.errors import EndpointError
from common.http_client import EdgeCloudHTTPClient
from common.http_server import HTTPServer
from common.protocol.openai import ChatRequest, Message
from common.types import Collaboration, Provenance
from edge.confidence import (
    ConfidenceCalculator,
    ConfidenceEnsemble,
    ConfidenceSettings,
    ConfidenceStrategy,
    Floats,
    Softmax,
)
from edge.edge_server import build_app
from edge.engine.scheduler import Confidence

PROMPTS = ["What is AI?", "What is the capital of Australia?", "What is a valley?", "Who invented the piano?"]


def margin(softmax: Softmax, settings: ConfidenceSettings) -> Floats:
    """The probability of the likeliest token minus that of the second, p1 - p2, in [0, 1].

    `softmax.weights`, [..., V], has one row per token of this step; p is weights / `softmax.total`. The engine calls
    this once per step, so it must be fast: no loop over rows, no full sort.
    """
    first_two = np.partition(softmax.weights, -2, axis=-1)[..., -2:]
    return np.asarray((first_two[..., 1] - first_two[..., 0]) / softmax.total)


STRATEGIES: dict[str, Confidence] = {
    "max_prob": ConfidenceCalculator(ConfidenceStrategy.MAX_PROB).of_batch,
    "margin": ConfidenceCalculator(margin).of_batch,
    "mean of both": ConfidenceEnsemble([ConfidenceStrategy.MAX_PROB, margin]).of_batch,
}


async def main() -> None:
    config = client_config("Compare confidence strategies; needs the cloud server of `python main.py --mode server`.")
    table = Table("strategy", "kept", "accepted", "the cloud's own", "cloud calls", "confidence")
    for name, confidence in STRATEGIES.items():
        reports = await ask_all(config, confidence)
        tokens = {source: sum(report.tokens[source] for report in reports) for source in Provenance}
        kept, accepted = tokens.pop(Provenance.EDGE), tokens.pop(Provenance.ACCEPTED)
        calls = sum(report.cloud_calls for report in reports)
        mean = sum(report.confidence_score or 0 for report in reports) / len(reports)
        table.add_row(name, str(kept), str(accepted), str(sum(tokens.values())), str(calls), f"{mean:.1%}")
    Console(highlight=False).print(table)
    print("Columns 2 to 4 count tokens. A stricter strategy keeps fewer of them on the edge; the cloud verifies more.")


async def ask_all(config: Config, confidence: Confidence) -> list[Collaboration]:
    """Starts an edge server with this strategy on a free port, sends it every prompt, and stops it."""
    server = HTTPServer(build_app(config, confidence), "127.0.0.1", port=0)
    await server.start()
    try:
        address = f"http://127.0.0.1:{server.port}"
        here = replace(config, communication=replace(config.communication, edge_endpoint=address))
        async with EdgeCloudHTTPClient.of(here) as client:
            return [await ask(client, prompt) for prompt in PROMPTS]
    finally:
        await server.stop()


async def ask(client: EdgeCloudHTTPClient, prompt: str) -> Collaboration:
    question = ChatRequest(messages=[Message(role="user", content=prompt)], max_tokens=48, temperature=0.0)
    reports = [chunk.collaboration async for chunk in client.stream(question) if chunk.collaboration]
    if reports[-1].degraded:
        raise EndpointError(reports[-1].degraded)  # without the cloud the gate has no effect
    return reports[-1]


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, for example no server, is one line
