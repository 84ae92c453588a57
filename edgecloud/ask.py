"""Sends one prompt to a running edge server: edgecloud ask, or python main.py --mode client."""

import argparse
from functools import partial

from cli import ask, terminal
from cli.args import config_parser, run_with_config
from common.config_schema import Config
from common.http_client import EdgeCloudHTTPClient
from edgecloud import answers


def parser() -> argparse.ArgumentParser:
    options = config_parser("Ask a running edge server one question; the answer is printed as it comes.")
    options.add_argument("prompt", metavar="PROMPT", help="the question")
    answers.add_flags(options.add_argument_group("answers"))
    return options


def run(args: argparse.Namespace) -> int:
    settings = answers.settings_of(args)
    return run_with_config(args, partial(answer, prompt=args.prompt, settings=settings, stream=True))


async def answer(config: Config, prompt: str, settings: ask.QuestionSettings, stream: bool) -> None:
    """Prints the answer, as it comes with `stream`, and how it came about."""
    async with EdgeCloudHTTPClient.of(config) as client:
        await ask.ask(client, prompt, settings, terminal.console(), stream)
