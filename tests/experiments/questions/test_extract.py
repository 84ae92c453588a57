"""The function is found in every form of answer, and runs with what the prompt has before it."""

import pytest

from calibration.humaneval import HumanEvalTask
from experiments.questions.extract import program

TASK = HumanEvalTask(
    task_id="Mine/0",
    prompt='import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef area(r):\n    """Of a circle."""\n',
    entry_point="area",
    canonical_solution="    return math.pi * r * r\n",
    test="def check(candidate):\n    assert round(candidate(1), 3) == 3.142\n    assert half(4) == 2\n",
)
RIGHT = "def area(r):\n    return math.pi * r * r\n"


def passes(answer: str) -> bool:
    """Without the sandbox: all programs here are harmless."""
    try:
        exec(program(TASK, answer), {})
    except (AssertionError, NameError, SyntaxError, TypeError):
        return False
    return True


@pytest.mark.parametrize(
    "answer",
    [
        TASK.right_answer,
        RIGHT,
        f"```python\n{RIGHT}```",
        f"```\n{RIGHT}```\nThis multiplies.",
        f"Here is the function:\n\n```py\n{RIGHT}",
        f"```python\nprint(area(2))\n```\nwhich is\n```python\n{RIGHT}```",
        f"```python\n{RIGHT}```\nFor example:\n```python\nassert area(1) > 3\n```",
        f"```python\ndef area(r):\n    return r\n```\nNo, better:\n```python\n{RIGHT}```",
        "  ```python\n  def area(r):\n      return math.pi * r * r\n  ```",
        "```python\nreturn math.pi * r * r\n```",
        "    return math.pi * r * r",
        "    s = r * r\n\n    return math.pi * s\n",
    ],
)
def test_a_right_function_is_found(answer: str) -> None:
    assert passes(answer)


@pytest.mark.parametrize(
    "answer",
    ["", "I cannot.", "```python\n```", f"```python\n{RIGHT[:20]}", "```python\ndef area(r):\n    return r\n```"],
)
def test_a_wrong_or_missing_function_does_not_pass(answer: str) -> None:
    assert not passes(answer)


def test_a_task_without_its_function_is_refused() -> None:
    with pytest.raises(ValueError, match="'square'"):
        HumanEvalTask("Mine/1", TASK.prompt, "square", "", "")
