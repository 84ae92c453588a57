"""Starts both servers, answers one prompt, stops both: edgecloud demo, or python main.py --mode demo."""

import argparse

from cli import ask, terminal
from cli.args import config_parser, load_config, run_program
from cli.demo import demo_servers
from common.http_client import EdgeCloudHTTPClient
from edgecloud import answers


def parser() -> argparse.ArgumentParser:
    options = config_parser("Start both servers on free ports, answer one prompt, stop both.")
    options.add_argument("prompt", metavar="PROMPT", nargs="?", help=f"the question (default: {answers.PROMPT})")
    answers.add_flags(options.add_argument_group("answers"))
    return options


def run(args: argparse.Namespace) -> int:
    return run_program(demo(args, args.prompt or answers.PROMPT, answers.settings_of(args)))


async def demo(args: argparse.Namespace, prompt: str, settings: ask.QuestionSettings) -> None:
    """Both servers on free ports, one answer, everything stopped again."""
    console = terminal.console()
    async with demo_servers(args, console.print) as (edge, cloud):
        config = load_config(args, communication__edge_endpoint=edge, communication__cloud_endpoint=cloud)
        async with EdgeCloudHTTPClient.of(config) as client:
            console.print(f"\n{prompt}", style="bold")
            await ask.ask(client, prompt, settings, console)
