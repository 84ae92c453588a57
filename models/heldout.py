"""The demo models' held-out questions as JSON lines, to calibrate or evaluate with. Knows no model.

    python -m models.heldout [--per-kind N] > held-out.jsonl

One {"prompt": ..., "answer": ...} a line: facts in wordings and tasks on operands that neither model was trained on.
"""

import argparse
import random
import sys
from collections import defaultdict

import msgspec

from models.corpus import questions as corpus


def pairs(per_kind: int | None = None) -> list[tuple[str, str, str]]:
    """All held-out (kind, prompt, answer), or a fixed random few of each kind."""
    by_kind = defaultdict(list)
    for pair in corpus.held_out_pairs():
        by_kind[pair[0]].append(pair)
    if per_kind is None:
        return [pair for found in by_kind.values() for pair in found]
    return [p for found in by_kind.values() for p in random.Random(0).sample(found, min(per_kind, len(found)))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo models' held-out questions as JSON lines.")
    parser.add_argument("--per-kind", type=int, help="only so many questions of each kind")
    for _, prompt, answer in pairs(parser.parse_args().per_kind):
        sys.stdout.write(msgspec.json.encode({"prompt": prompt, "answer": answer}).decode() + "\n")


if __name__ == "__main__":
    main()
