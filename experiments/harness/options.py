"""The command-line options that all experiments have, and lists of numbers on the command line."""

import argparse
import re
from typing import Any

from cli.args import amount, config_parser
from common.errors import ConfigError

OUTPUT_HELP = "folder of the report, or its own file, ending in .json"
MOST_CLIENTS = 4096
DEMO_TURNS = 2
"""Earlier turns before each question of the demo corpus, whose prompts alone are too short for a prefix cache. The demo
models, which were trained on single turns, tolerate this many."""


def parser(description: str, questions: int, repeats: int) -> argparse.ArgumentParser:
    """The options of all experiments; `questions` and `repeats` are defaults."""
    options = config_parser(description)
    options.add_argument(
        "--data",
        "--dataset",
        metavar="FILE|NAME",
        help="JSON lines, or general, alpaca, xsum, boolq, quac, imdb, humaneval (default: the demo's held-out "
        "questions, or general for other models)",
    )
    options.add_argument(
        "--questions",
        "--samples",
        type=int,
        default=questions,
        help="largest number of questions (default %(default)s)",
    )
    options.add_argument(
        "--turns",
        type=int,
        help=f"earlier turns before each question (default: {DEMO_TURNS} with the demo's questions, else 0)",
    )
    options.add_argument(
        "--max-tokens", type=int, default=96, help="tokens of the longest answer (default %(default)s)"
    )
    options.add_argument("--temperature", type=amount, default=0.0, help="0: greedy (default %(default)s)")
    options.add_argument("--repeats", type=int, default=repeats, help="answers to each question (default %(default)s)")
    options.add_argument(
        "--seed", type=int, default=0, help="seed of questions, orders and sampling (default %(default)s)"
    )
    options.add_argument(
        "--network", metavar="MS,MBIT", help="round trip in ms and bandwidth in Mbit/s between edge and cloud"
    )
    options.add_argument("--output", default=".", metavar="DIR", help=f"{OUTPUT_HELP} (default: the current folder)")
    options.add_argument("--resume", action="store_true", help="continue an interrupted run")
    return options


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what is measured, without secret values."""
    shown = {
        name: value for name, value in vars(args).items() if name not in ("output", "resume", "compare", "minutes")
    }
    return shown | {"set": [re.sub(r"(api_keys?\W*?[=:]).*", r"\1***", setting) for setting in args.set]}


def numbers(text: str, option: str) -> list[float]:
    """The numbers of a comma-separated list in order, without repetitions. Raises ConfigError outside 0 to 1e6."""
    try:
        values = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option} takes numbers separated by commas, not {text!r}") from error
    if not all(0 <= number < 1e6 for number in values):
        raise ConfigError(f"{option} takes numbers from 0 to a million, not {text!r}")
    return values


def client_counts(text: str, most: int = MOST_CLIENTS) -> list[int]:
    """The numbers of --clients in increasing order, each once. Raises ConfigError for what is no number of clients."""
    counts = numbers(text, "--clients")
    if not all(number.is_integer() and 1 <= number <= most for number in counts):
        raise ConfigError(f"--clients takes whole numbers from 1 to {most}, not {text!r}")
    return sorted(map(int, counts))
