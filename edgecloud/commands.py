"""The command `edgecloud`: chooses a subcommand, and writes completions for shells."""

import argparse
import importlib
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import shtab

from cli.args import plain_parser
from common.errors import StartError
from common.files.installation import install_hint

PACKAGE = "edge-cloud-inference"
SHELLS = "bash", "zsh", "fish"


@dataclass(frozen=True)
class Subcommand:
    """`module` has `parser()`, and `run(args)` for the exit code. `extra`: of the package, with what it needs."""

    help: str
    module: str
    extra: str = "edge"


SUBCOMMANDS = {
    "serve": Subcommand("start both servers, restart one that dies", "edgecloud.serve"),
    "edge": Subcommand("start one edge server", "edgecloud.edge"),
    "cloud": Subcommand("start one cloud server", "edgecloud.cloud", "cloud"),
    "ask": Subcommand("ask a running edge one question", "edgecloud.ask"),
    "chat": Subcommand("converse with a running edge", "edgecloud.chat"),
    "batch": Subcommand("send a file of requests to a running edge", "edgecloud.batch"),
    "demo": Subcommand("start both servers, answer one prompt, stop both", "edgecloud.demo"),
    "calibrate": Subcommand("fit thresholds to questions of your own", "edgecloud.calibrate"),
    "partition": Subcommand("cut a model for the layer split", "models.partition.partition", "edge,cloud"),
    "ablate": Subcommand("measure what each feature contributes", "edgecloud.ablate"),
    "bench": Subcommand("run a benchmark", "edgecloud.bench", "edge,cloud"),
    "doctor": Subcommand("check this installation, with advice", "edgecloud.doctor"),
}


def main() -> int:
    """Runs the subcommand of this process's command line; returns its exit code."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        parser = root_parser([first])
    except StartError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    args = parser.parse_args()
    if args.command is None:
        parser.print_help()
        return 2
    if args.command == "completion":
        print(completion(args.shell))
        return 0
    code: int = _module(args.command).run(args)
    return code


def root_parser(wanted: Collection[str]) -> argparse.ArgumentParser:
    """The parser of the command; only the `wanted` subcommands have their flags, because that takes their imports.

    Raises StartError for one whose packages are missing.
    """
    parser = plain_parser("Edge-cloud inference of large language models on llama.cpp (edge) and vLLM (cloud).")
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {_version()}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, subcommand in SUBCOMMANDS.items():
        if name in wanted:
            own = _module(name).parser()
            one = choices.add_parser(
                name, help=subcommand.help, description=own.description, parents=[own], add_help=False
            )
            for action in one._actions:
                if action.metavar in ("FILE", "DIR", "PATH") or action.type is Path:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        else:
            choices.add_parser(name, help=subcommand.help)
    completing = choices.add_parser("completion", help="print the completion script of a shell")
    completing.add_argument("shell", choices=SHELLS)
    return parser


def completion(shell: str) -> str:
    """The completion script of one of SHELLS; subcommands whose packages are missing are in it without flags."""
    parser = root_parser([name for name in SUBCOMMANDS if _is_usable(name)])
    parser.prog = "edgecloud"
    script: str = shtab.complete(parser, shell)
    return script


def _module(name: str) -> ModuleType:
    subcommand = SUBCOMMANDS[name]
    try:
        return importlib.import_module(subcommand.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise StartError(f"{name} needs the package {missing}: {install_hint(subcommand.extra)}") from error


def _is_usable(name: str) -> bool:
    try:
        _module(name)
    except StartError:
        return False
    return True


def _version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "(a checkout)"
