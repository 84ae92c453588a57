"""What the turns of a conversation cost on a split model: with the KV of earlier turns, and each as a first one.

    python -m experiments.split.conversation [--edge URL] [--threshold 0.8] QUESTION...

The servers must run and the edge must have a split model. Each turn is asked twice: first as it is, then with
`use_kv_cache: false`. Without --threshold no exit is taken, and both answers must have the same tokens.
"""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.table import Table

from cli import terminal
from cli.args import amount, config_parser, load_config, run_program
from common.http.client import HTTPClient

QUESTIONS = "What is AI?", "What is machine learning?", "Explain deep learning", "What is the capital of France?"
TOKENS = 48
"""Of an answer at most."""


class TurnCost(msgspec.Struct, frozen=True):
    """One answer: its tokens, and what it took."""

    tokens: list[int]
    text: str
    prompt: int
    cached: int
    bytes_up: int
    cloud_positions: int


async def ask(edge: HTTPClient, messages: Sequence[dict[str, str]], **fields: object) -> TurnCost:
    body = {"messages": messages, "mode": "split", "temperature": 0, "max_tokens": TOKENS, **fields}
    answer: dict[str, Any] = await edge.post("/v1/chat/completions", body | {"collaboration": {"tokens": True}}, dict)
    (choice,), report = answer["choices"], answer["collaboration"]
    return TurnCost(
        [token["token_id"] for token in choice["collaboration"]["tokens"]],
        choice["message"]["content"],
        answer["usage"]["prompt_tokens"],
        report["cached_tokens"],
        report["bytes_up"],
        report["cloud_positions"],
    )


async def conversation(
    edge: HTTPClient, questions: Sequence[str], threshold: float | None
) -> list[tuple[TurnCost, TurnCost]]:
    """Each turn, as it is and without reuse."""
    exits: dict[str, object] = {"use_confidence_check": False}
    if threshold is not None:
        exits = {"confidence_threshold": threshold}
    messages, turns = list[dict[str, str]](), list[tuple[TurnCost, TurnCost]]()
    for question in questions:
        messages.append({"role": "user", "content": question})
        warm, cold = await ask(edge, messages, **exits), await ask(edge, messages, **exits, use_kv_cache=False)
        messages.append({"role": "assistant", "content": warm.text})
        turns.append((warm, cold))
    return turns


def table(turns: Sequence[tuple[TurnCost, TurnCost]]) -> Table:
    shown = Table("turn", "prompt", "found", "bytes up", "cold", "positions in the cloud", "cold", "tokens", "cold")
    for number, (warm, cold) in enumerate(turns, 1):
        same = "the same" if warm.tokens == cold.tokens else "others"
        counts = warm.prompt, warm.cached, warm.bytes_up, cold.bytes_up, warm.cloud_positions, cold.cloud_positions
        shown.add_row(str(number), *(f"{count:,}" for count in (*counts, len(warm.tokens))), same)
    return shown


async def main() -> None:
    parser = config_parser("What the turns of a conversation cost on a split model, with and without reuse of KV.")
    parser.add_argument("--edge", metavar="URL", help="the edge server (default: communication.edge_endpoint)")
    parser.add_argument("--threshold", type=amount, help="confidence at which exits are taken (default: never)")
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="the turns (default: of the demo corpus)")
    args = parser.parse_args()
    config = load_config(args, communication__edge_endpoint=args.edge)
    async with HTTPClient(config.communication.edge_endpoint, config.communication.http_client) as edge:
        terminal.console().print(table(await conversation(edge, args.questions or QUESTIONS, args.threshold)))


if __name__ == "__main__":
    sys.exit(run_program(main()))
