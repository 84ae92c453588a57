"""Converses with a running edge server: edgecloud chat, or python main.py --mode interactive."""

import argparse
from functools import partial

from cli import terminal
from cli.args import config_parser, run_with_config
from cli.ask import QuestionSettings
from cli.interactive import repl
from common.config_schema import Config
from common.http_client import EdgeCloudHTTPClient
from edgecloud import answers


def parser() -> argparse.ArgumentParser:
    options = config_parser("Converse with a running edge server; /help shows the commands, Ctrl-D ends.")
    answers.add_flags(options.add_argument_group("answers"))
    return options


def run(args: argparse.Namespace) -> int:
    return run_with_config(args, partial(converse, settings=answers.settings_of(args)))


async def converse(config: Config, settings: QuestionSettings) -> None:
    """A conversation until the end of the input."""
    async with EdgeCloudHTTPClient.of(config) as client:
        await repl(client, config, settings, terminal.console())
