"""An answer as it comes, each token in the colour of where it comes from: python examples/streaming.py"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project is not installed: its folder is where imports begin

from cli import terminal
from cli.args import client_config, run_program
from common.http_client import EdgeCloudHTTPClient
from common.protocol.openai import ChatRequest, Message


async def main() -> None:
    config = client_config("Stream one answer of the servers that `python main.py --mode server` started.")
    console = terminal.console()
    question = ChatRequest(
        messages=[Message(role="user", content="What is machine learning?")],
        max_tokens=96,
        temperature=0.0,
        use_confidence_check=False,  # lossless: the text is the cloud's own, most of its tokens are the edge's drafts
    )
    started = time.perf_counter()
    first_token = None
    async with EdgeCloudHTTPClient.of(config) as client:
        # The edge server runs the pipeline; each chunk is what one of its rounds committed.
        async for chunk in client.stream(question):
            for choice in chunk.choices:
                if choice.delta.content and first_token is None:
                    first_token = time.perf_counter() - started
                console.print(terminal.styled(choice.delta.content, choice.provenance), end="")
            if chunk.collaboration is not None:  # the last chunk: the report
                console.print("\n")
                console.print(terminal.summary(chunk.collaboration, (time.perf_counter() - started) * 1000))
    if first_token is not None:
        console.print(f"the first token came after {first_token * 1000:.0f} ms")


if __name__ == "__main__":
    sys.exit(run_program(main()))  # an error, like a server that is not up, is one line
