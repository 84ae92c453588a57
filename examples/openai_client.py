"""Uses the edge server through the openai package: python examples/openai_client.py

Needs only `pip install openai`. Request fields that OpenAI does not have go into extra_body.
"""

import argparse
import os
import sys

from openai import OpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is artificial intelligence?"}]


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask the edge server with the openai package.")
    usual = os.environ.get("EDGECLOUD_COMMUNICATION__EDGE_ENDPOINT", "http://localhost:8080")
    parser.add_argument("--edge", metavar="URL", default=usual, help=f"the edge server (default: {usual})")
    edge = parser.parse_args().edge

    # The package requires a key; the edge checks it only if edge.server.api_keys has any.
    key = os.environ.get("EDGECLOUD_COMMUNICATION__EDGE_API_KEY", "none")
    with OpenAI(base_url=f"{edge}/v1", api_key=key) as client:
        model = client.models.list().data[0].id
        print(f"model: {model}\n")

        for mode in ("collaborative", "edge_only", "cloud_only"):
            answer = client.chat.completions.create(
                model=model,
                messages=QUESTION,
                temperature=0,
                max_tokens=48,
                extra_body={"mode": mode},
            )
            # Reply fields that OpenAI does not have are in model_extra.
            report = (answer.model_extra or {})["collaboration"]
            sources = ", ".join(f"{count} {source}" for source, count in report["tokens"].items() if count)
            print(f"{mode}: {answer.choices[0].message.content}\n  tokens: {sources}\n")

        print("streamed: ", end="", flush=True)
        stream = client.chat.completions.create(
            model=model, messages=QUESTION, temperature=0, max_tokens=48, stream=True
        )
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        why = f" ({error.__cause__}): is the edge server running?" if error.__cause__ else ""
        sys.exit(f"error: {str(error).removesuffix('.')}{why}")
