"""Writes documented functions of the standard library as questions with answers: what exits of a code model learn from.

    python -m models.exits.documented_functions --output FILE.jsonl [--questions N]

Every machine has these texts. A question is a signature with its docstring, asked as a task of HumanEval is; the answer
is the whole function.
"""

import argparse
import ast
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from calibration import humaneval
from calibration.data import CalibrationQuestion
from cli.args import count, run_sync_program
from cli.terminal import console
from common.errors import ConfigError

SEED = 0
QUESTIONS = 600
SHORTEST, LONGEST = 3, 60
"""Lines of a function behind its docstring: shorter ones only call another, longer ones are seldom asked for."""
EXAMPLES = "test", "tests", "idlelib", "site-packages", "dist-packages"
"""Folders of the library whose functions are tests, or somebody else's."""


class DocumentedFunction(NamedTuple):
    """The source of a function up to the end of its docstring, and the rest of it."""

    beginning: str
    body: str

    @property
    def question(self) -> CalibrationQuestion:
        answer = f"```python\n{self.beginning}\n{self.body}\n```"
        return CalibrationQuestion(humaneval.request(self.beginning), answer)


def functions(source: str) -> Iterator[DocumentedFunction]:
    """The documented functions of a module that stand at its left margin; none if it is not valid Python."""
    try:
        nodes = ast.parse(source).body
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and not node.decorator_list and ast.get_docstring(node):
            doc, last = node.body[0].end_lineno, node.end_lineno
            assert doc is not None and last is not None
            if SHORTEST <= last - doc <= LONGEST:
                yield DocumentedFunction("\n".join(lines[node.lineno - 1 : doc]), "\n".join(lines[doc:last]))


def library() -> list[DocumentedFunction]:
    """All of the standard library, each once, in an order that is the same on every machine with this Python."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not set(EXAMPLES) & set(path.relative_to(root).parts))
    found = [each for path in paths for each in functions(path.read_text(encoding="utf-8", errors="replace"))]
    return list(dict.fromkeys(found))


def write(output: Path, most: int) -> int:
    """Writes at most so many, drawn at random, and returns how many. Raises ConfigError."""
    chosen = library()
    random.Random(SEED).shuffle(chosen)
    lines = b"\n".join(msgspec.json.encode(each.question) for each in chosen[:most])
    try:
        output.write_bytes(lines + b"\n")
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from error
    return len(chosen[:most])


def run(args: argparse.Namespace) -> None:
    console().print(f"wrote {write(args.output, args.questions)} questions with answers to {args.output}")


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m models.exits.documented_functions", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument(
        "--questions", type=count, default=QUESTIONS, metavar="N", help="at most so many (default: %(default)s)"
    )
    args = parser.parse_args()
    return run_sync_program(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
