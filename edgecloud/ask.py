"""Sends one prompt to a running edge server: edgecloud ask, or python main.py --mode client."""

import argparse

from cli import ask, terminal
from cli.args import config_parser, load_config, run_program
from common.config_schema import Config
from common.http_client import EdgeCloudHTTPClient
from edgecloud import answers


def parser() -> argparse.ArgumentParser:
    options = config_parser("Ask a running edge server one question; the answer is printed as it comes.")
    options.add_argument("prompt", metavar="PROMPT", help="the question")
    answers.add_flags(options.add_argument_group("answers"))
    return options


def run(args: argparse.Namespace) -> int:
    return run_program(answer(load_config(args), args.prompt, answers.settings_of(args), stream=True))


async def answer(config: Config, prompt: str, settings: ask.QuestionSettings, stream: bool) -> None:
    """Prints the answer, as it comes with `stream`, and how it came about."""
    async with EdgeCloudHTTPClient.of(config) as client:
        await ask.ask(client, prompt, settings, terminal.console(), stream)
