"""What is told of a server that did not start is its error, wherever it stands in the log."""

from pathlib import Path

import pytest

from cli.server_log import ServerLog


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loading\nerror: no such file: a.gguf\n", "no such file: a.gguf"),
        ("error: no such file: a.gguf\nbye\n", "no such file: a.gguf"),
        (
            "Traceback (most recent call last):\n  File ...\nRuntimeError: no memory\n  warnings.warn('leaked')\n",
            "RuntimeError: no memory (see ",
        ),
        ("loading\nhalf way\n", "half way (see "),
        ("", "it printed nothing"),
        ("error: no such file: a.gguf\nRuntimeError: Event loop is closed\n", "no such file: a.gguf"),
        ("Traceback (most recent call last):\nAssertionError\nbye\n", "AssertionError (see "),
    ],
)
def test_the_last_error_of_a_log_is_told_and_of_another_programs_also_where_the_rest_is(
    text: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "cloud.log"
    file.write_text(text)
    found = ServerLog(file).last_error()
    assert found.startswith(told)
    assert found == told or found.endswith("cloud.log)")
