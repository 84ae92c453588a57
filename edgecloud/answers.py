"""The flags of all programs that ask questions, and the settings that they make."""

import argparse

from cli.args import amount
from cli.ask import QuestionSettings

PROMPT = "What is AI?"
"""Asked by the programs that need no prompt."""


def add_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-tokens", type=int, default=128, help="length limit of an answer, in tokens (default: 128)"
    )
    group.add_argument("--temperature", type=amount, default=0.8, help="sampling temperature; 0: greedy (default: 0.8)")
    group.add_argument(
        "--no-draft-verify",
        action="store_true",
        help="switch F2 off: the cloud generates tokens itself instead of verifying the edge's drafts",
    )
    group.add_argument(
        "--no-confidence-check",
        action="store_true",
        help="switch F1 off: the cloud verifies every draft (lossless)",
    )


def settings_of(args: argparse.Namespace) -> QuestionSettings:
    """The settings of a command line with these flags."""
    return QuestionSettings(
        args.max_tokens,
        args.temperature,
        use_draft_verify=False if args.no_draft_verify else None,
        use_confidence_check=False if args.no_confidence_check else None,
    )
