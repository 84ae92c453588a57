"""A task of HumanEval (Chen et al. 2021) as it is published, and how a chat model is asked to solve it."""

from msgspec import Struct


def request(prompt: str) -> str:
    """What the user asks for the beginning of a function.

    Without explanations an answer is short, and slow machines need not wait for them.
    """
    return (
        "Complete the following function. Answer with the whole function in one Python code block, "
        f"without explanations.\n\n```python\n{prompt.strip()}\n```"
    )


class HumanEvalTask(Struct, frozen=True):
    """A line of HumanEval.jsonl: `prompt` ends in the docstring of the function `entry_point`.

    `canonical_solution` is the rest of the function; `test` defines `check(candidate)`.
    """

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def __post_init__(self) -> None:
        if f"def {self.entry_point}(" not in self.prompt:
            raise ValueError(f"the prompt does not begin a function {self.entry_point!r}")

    @property
    def request(self) -> str:
        return request(self.prompt)

    @property
    def right_answer(self) -> str:
        """The canonical solution, as an answer to `request`."""
        return f"```python\n{self.prompt}{self.canonical_solution.rstrip()}\n```"
