"""Streams an answer, each token in the colour of its source: python examples/streaming.py"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # makes the project importable without installing it

from cli import terminal
from cli.args import client_config, run_program
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message


async def main() -> None:
    config = client_config("Stream one answer from the servers of `python main.py --mode server`.")
    console = terminal.console()
    question = ChatRequest(
        messages=[Message(role="user", content="What is machine learning?")],
        max_tokens=96,
        temperature=0.0,
        use_confidence_check=False,  # lossless: the cloud verifies every token of the edge's drafts
    )
    start = time.perf_counter()
    first_token = None
    async with EdgeCloudHTTPClient.of(config) as client:
        # The edge server runs the pipeline; each chunk has the tokens that one of its rounds committed.
        async for chunk in client.stream(question):
            for choice in chunk.choices:
                if choice.delta.content and first_token is None:
                    first_token = time.perf_counter() - start
                console.print(terminal.styled(choice.delta.content, choice.provenance), end="")
            if chunk.collaboration is not None:  # the last chunk: the report
                console.print("\n")
                console.print(terminal.summary(chunk.collaboration, (time.perf_counter() - start) * 1000))
    if first_token is not None:
        console.print(f"the first token came after {first_token * 1000:.0f} ms")


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, for example no server, is one line
