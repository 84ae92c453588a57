"""Makes a program from an answer to a task of HumanEval: its code between the task's own beginning and tests."""

import re
import textwrap

from calibration.humaneval import HumanEvalTask

BLOCK = re.compile(r"^[ \t]*```[^`\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
"""A fenced block; the last may be open, as an answer may end before its fence."""


def program(task: HumanEvalTask, answer: str) -> str:
    """A program that runs to its end if the answer passes the tests.

    It begins with what the prompt has before the function: imports, and functions that the tests need too.
    """
    begin = re.search(rf"^def {re.escape(task.entry_point)}\(", task.prompt, re.MULTILINE)
    before = task.prompt[: begin.start()] if begin else ""
    return "\n".join([before, function_of(task, answer), task.test, f"check({task.entry_point})", ""])


def function_of(task: HumanEvalTask, answer: str) -> str:
    """The last fenced block that defines the function, or an answer without blocks that does.

    What defines no function is the rest of the prompt's: as it is, or in a block, where models drop the indentation.
    """
    blocks = BLOCK.findall(answer)
    define = re.compile(rf"^[ \t]*def {re.escape(task.entry_point)}\b", re.MULTILINE)
    defining = [textwrap.dedent(block) for block in blocks or [answer] if define.search(block)]
    if defining:
        return defining[-1]
    return task.prompt + (textwrap.indent(textwrap.dedent(blocks[0]), "    ") if blocks else answer)
