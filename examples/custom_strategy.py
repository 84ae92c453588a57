"""A confidence strategy of one's own (F1), in edge servers that use it: python examples/custom_strategy.py

To give it a name in the config instead, for start_edge.py: add the name to `ConfidenceStrategy` (common/types.py) and
the function to `STRATEGIES` (edge/confidence.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project is not installed: its folder is where imports begin

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
    """How far the likeliest token is ahead of the next one: p1 - p2, in [0, 1].

    `softmax.weights` holds a row of V numbers for each token that is drawn in this step of the engine, and p is these
    over `softmax.total`. It is called once per step, so it has to be quick: no loop over rows, no sorting of all.
    """
    first_two = np.partition(softmax.weights, -2, axis=-1)[..., -2:]
    return np.asarray((first_two[..., 1] - first_two[..., 0]) / softmax.total)


STRATEGIES: dict[str, Confidence] = {
    "max_prob": ConfidenceCalculator(ConfidenceStrategy.MAX_PROB).of_batch,
    "margin": ConfidenceCalculator(margin).of_batch,
    "mean of both": ConfidenceEnsemble([ConfidenceStrategy.MAX_PROB, margin]).of_batch,
}


async def main() -> None:
    config = client_config("Compare confidence strategies; the cloud of `python main.py --mode server` runs.")
    table = Table("strategy", "kept", "accepted", "the cloud's own", "cloud calls", "confidence")
    for name, confidence in STRATEGIES.items():
        reports = await ask_all(config, confidence)
        tokens = {source: sum(report.tokens[source] for report in reports) for source in Provenance}
        kept, accepted = tokens.pop(Provenance.EDGE), tokens.pop(Provenance.ACCEPTED)
        calls = sum(report.cloud_calls for report in reports)
        mean = sum(report.confidence_score or 0 for report in reports) / len(reports)
        table.add_row(name, str(kept), str(accepted), str(sum(tokens.values())), str(calls), f"{mean:.1%}")
    Console(highlight=False).print(table)
    print("In tokens. A stricter strategy keeps fewer of them on the edge and has the cloud verify more.")


async def ask_all(config: Config, confidence: Confidence) -> list[Collaboration]:
    """Starts an edge server with this strategy, on a free port, asks it every prompt, and stops it."""
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
        raise EndpointError(reports[-1].degraded)  # an answer without the cloud says nothing about the gate
    return reports[-1]


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, like a server that is not up, is one line
