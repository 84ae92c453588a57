"""Documented functions as questions: which are taken, that they are whole, and that a training can read them."""

from pathlib import Path

import pytest

from calibration import data
from common.errors import ConfigError
from models.exits import documented_functions
from models.exits.documented_functions import functions

SOURCE = '''
def documented(first, second=2):
    """Adds both.

    Any numbers.
    """
    total = first
    total += second
    return total


def bare(first):
    total = first
    total += 1
    return total


def short(first):
    """Returns it."""
    return first


@cache
def decorated(first):
    """Returns it."""
    total = first
    total += 1
    return total
'''


def test_a_question_is_the_beginning_of_a_function_and_its_answer_the_whole_of_it() -> None:
    (found,) = functions(SOURCE)
    question = found.question
    assert question.prompt.endswith('    Any numbers.\n    """\n```')
    assert "total" not in question.prompt
    assert question.answer is not None
    whole = SOURCE.partition("\n\n\n")[0].strip()
    assert question.answer == f"```python\n{whole}\n```"


@pytest.mark.parametrize("source", ["def broken(:", "x = '\0'"])
def test_a_module_that_is_no_valid_python_has_none(source: str) -> None:
    assert list(functions(source)) == []


def test_the_library_gives_the_same_questions_each_time_with_an_answer_to_each(tmp_path: Path) -> None:
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    assert documented_functions.write(first, 50) == documented_functions.write(again, 50) == 50
    assert first.read_bytes() == again.read_bytes()
    assert len(dict(data.read_answered(first))) == 50


def test_a_file_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output .*: No such file or directory"):
        documented_functions.write(tmp_path / "missing" / "file.jsonl", 1)
