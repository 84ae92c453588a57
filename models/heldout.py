"""Writes the demo models' held-out questions as JSON lines, to calibrate or evaluate with.

    python -m models.heldout [--per-kind N] > held-out.jsonl

One {"prompt": ..., "answer": ...} per line: facts in wordings, and tasks with operands, that no model was trained on.
"""

import argparse
import random
import sys
from collections import defaultdict

import msgspec

from cli.args import count, run_sync_program
from models.corpus import questions as corpus


def pairs(per_kind: int | None = None) -> list[tuple[str, str, str]]:
    """All held-out (kind, prompt, answer) by kind, or at most `per_kind` of each kind, always the same random ones."""
    by_kind = defaultdict(list)
    for pair in corpus.held_out_pairs():
        by_kind[pair[0]].append(pair)
    if per_kind is None:
        return [pair for found in by_kind.values() for pair in found]
    return [p for found in by_kind.values() for p in random.Random(0).sample(found, min(per_kind, len(found)))]


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.heldout", description="Write the demo models' held-out questions as JSON lines."
    )
    parser.add_argument("--per-kind", type=count, metavar="N", help="at most N questions of each kind (default: all)")
    chosen = pairs(parser.parse_args().per_kind)
    return run_sync_program(lambda: write(chosen))


def write(chosen: list[tuple[str, str, str]]) -> None:
    for _, prompt, answer in chosen:
        sys.stdout.write(msgspec.json.encode({"prompt": prompt, "answer": answer}).decode() + "\n")


if __name__ == "__main__":
    sys.exit(main())
