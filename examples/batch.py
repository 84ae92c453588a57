"""Asks many questions at once, which both engines answer in batches: python examples/batch.py"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # makes the project importable without installing it

from cli.args import client_config, run_program
from common.http_client import EdgeCloudHTTPClient
from common.types import InferenceResult, Provenance

PROMPTS = [
    "What is AI?",
    "How does machine learning work?",
    "Explain deep learning.",
    "What is the capital of France?",
    "What is meant by a valley?",
    "Who was the inventor of the piano?",
]


async def main() -> None:
    config = client_config("Ask the servers of `python main.py --mode server` six questions at once.")
    async with EdgeCloudHTTPClient.of(config) as client:
        start = time.perf_counter()
        # Both engines batch: a step over several answers costs less than one step for each.
        results = await client.batch_inference(PROMPTS, concurrency=4, max_tokens=64, temperature=0.0)
        seconds = time.perf_counter() - start
    show(results, seconds)


def show(results: list[InferenceResult], seconds: float) -> None:
    for prompt, result in zip(PROMPTS, results, strict=True):
        report = result.collaboration
        kept = report.tokens[Provenance.EDGE] / max(result.completion_tokens, 1)
        print(f"{prompt}\n  {result.text.strip()}")
        print(f"  edge alone {kept:.0%}, cloud asked {report.cloud_calls}x, {result.total_latency_ms:.0f} ms\n")
    tokens = sum(result.completion_tokens for result in results)
    print(f"{len(results)} answers in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, for example no server, is one line
