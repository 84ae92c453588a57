"""Asks edge and cloud one question and shows where the answer's tokens come from: python examples/basic_usage.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # makes the project importable without installing it

from cli.args import client_config, run_program
from common.http_client import EdgeCloudHTTPClient
from common.types import InferenceResult


async def main() -> None:
    config = client_config("Ask the servers of `python main.py --mode server` one question.")

    # With the servers on their usual ports EdgeCloudHTTPClient() is enough.
    async with EdgeCloudHTTPClient.of(config) as client:
        result = await client.full_inference_pipeline(
            prompt="Explain quantum computing",
            max_tokens=256,
            temperature=0.0,  # greedy: the same answer every time
            use_draft_verify=True,  # F2: the cloud checks what the edge drafted
            use_confidence_check=True,  # F1: only below the threshold; False: everywhere (lossless)
        )
    show(result)


def show(result: InferenceResult) -> None:
    print(result.text)
    print()
    print(f"total latency    {result.total_latency_ms:8.1f} ms")
    print(f"edge latency     {result.edge_latency_ms:8.1f} ms   drafting")
    print(f"cloud latency    {result.cloud_latency_ms:8.1f} ms   waiting for the cloud")
    print(f"confidence       {result.confidence_score:8.1%}      of the edge, mean over its tokens")
    print(f"acceptance rate  {result.acceptance_rate:8.1%}      of the draft tokens that the cloud verified")
    for source, count in result.collaboration.tokens.items():
        print(f"tokens {source:<9} {count:8}")


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, for example no server, is one line
