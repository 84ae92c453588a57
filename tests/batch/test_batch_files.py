"""What a batch reads and writes: bad lines are named before anything is sent, and no result is lost or doubled."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.batch.batch_input import BatchInput
from common.batch.batch_output import BatchOutput
from common.batch.lines import BatchLine, result_of
from common.errors import ConfigError
from common.http.messages import BODY_LIMIT
from tests.support.batches import attempt, results, row, written


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`, got `array`"),
        (json.dumps(row("")), "custom_id: is missing or empty"),
        (json.dumps(row("x", url="/v1/audio/speech")), "url: must be one of /v1/chat/completions"),
        (json.dumps(row("x") | {"method": "GET"}), "method: must be POST"),
        (json.dumps(row("x", stream=True)), "body.stream: a batch has no streams"),
        (json.dumps(row("x") | {"body": "text"}), "Expected `object`, got `str`"),
        (json.dumps({"prompt": "a", "messages": []}), "body: give custom_id, url and body"),
        (json.dumps(row("first")), "custom_id: line 1 has the same"),
        (json.dumps(row("x", prompt="a" * BODY_LIMIT)), f"is longer than {BODY_LIMIT} bytes"),
    ],
)
def test_a_bad_line_is_named_by_its_number(bad: str, why: str, tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", [row("first"), "", bad, row("last")])
    with pytest.raises(ConfigError) as caught:
        BatchInput(file)
    assert caught.value.message.startswith(f"{file}: line 3: {why}")


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 10: .*; and 15 more$"):
        BatchInput(written(tmp_path / "in.jsonl", ["{"] * 25))


def test_a_body_alone_is_a_request_named_after_its_line(tmp_path: Path) -> None:
    plain: list[Any] = ["", {"prompt": "a", "n": 2}, {"messages": []}, {"prompt": "a", "n": 2}]
    lines = list(BatchInput(written(tmp_path / "in.jsonl", plain)).lines(lambda _: True))
    assert [(line.custom_id, line.url) for line in lines] == [
        ("line-2", "/v1/completions"),
        ("line-3", "/v1/chat/completions"),
        ("line-4", "/v1/completions"),
    ]
    assert [json.loads(line.body) for line in lines] == plain[1:]
    assert len({line.key for line in lines}) == 3


@pytest.fixture
def given(tmp_path: Path) -> BatchInput:
    return BatchInput(written(tmp_path / "in.jsonl", [row(name) for name in "abcd"]))


def line_of(given: BatchInput, index: int) -> BatchLine:
    return next(given.lines(lambda at: at == index))


def add(output: BatchOutput, given: BatchInput, index: int, status: int = 200) -> None:
    output.add(index, result_of(line_of(given, index), attempt(status).reply))


def test_results_are_in_the_order_of_the_input_at_the_end(given: BatchInput, tmp_path: Path) -> None:
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        for index in (2, 0, 3, 1):
            add(output, given, index)
        assert [one["custom_id"] for one in results(output.path)] == ["c", "a", "d", "b"]
        output.order()
    assert [one["custom_id"] for one in results(output.path)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("torn", ["", '{"id":"ba', '{"id":"batch_req_00", "custom_id": "c"'])
def test_a_resumed_output_keeps_whole_lines_and_drops_a_torn_one(torn: str, given: BatchInput, tmp_path: Path) -> None:
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        add(output, given, 2)
        add(output, given, 1, 400)
        whole = output.path.read_text()
    output.path.write_text(whole + torn)
    with BatchOutput(output.path, given, resume=True) as output:
        assert output.path.read_text() == whole
        assert [output.has(index) for index in range(4)] == [False, True, True, False]
        assert (output.finished, output.failed) == (2, 1)


@pytest.mark.parametrize(("status", "kept"), [(200, True), (400, True), (401, False), (429, False), (503, False)])
def test_what_was_not_the_lines_own_fault_is_asked_again(
    status: int, kept: bool, given: BatchInput, tmp_path: Path
) -> None:
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        add(output, given, 0, status)
    with BatchOutput(output.path, given, resume=True) as output:
        assert output.has(0) is kept
        if not kept:
            add(output, given, 0)
        output.order()
    assert [one["response"]["status_code"] for one in results(output.path)] == [status if kept else 200]


def test_an_output_is_not_overwritten_without_resume(given: BatchInput, tmp_path: Path) -> None:
    for _ in range(2):  # an empty one is left where no edge answered
        BatchOutput(tmp_path / "out.jsonl", given, resume=False).__exit__()
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        add(output, given, 0)
    with pytest.raises(ConfigError, match="already exists: continue with --resume"):
        BatchOutput(tmp_path / "out.jsonl", given, resume=False)


def test_two_runs_do_not_write_one_output(given: BatchInput, tmp_path: Path) -> None:
    with (
        BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output,
        pytest.raises(ConfigError, match="another program writes it"),
    ):
        BatchOutput(output.path, given, resume=True)


def test_results_of_other_requests_are_refused_and_other_files_left_alone(given: BatchInput, tmp_path: Path) -> None:
    with BatchOutput(tmp_path / "out.jsonl", given, resume=False) as output:
        add(output, given, 0)
    other = BatchInput(written(tmp_path / "other.jsonl", [row("a", prompt="another question")]))
    with pytest.raises(ConfigError, match="line 1 answers no line of"):
        BatchOutput(output.path, other, resume=True)
    for text in ('{"precious": "data"}', '{"id": "batch_req_zz", "response": null}\n', "text\n"):
        output.path.write_text(text)
        with pytest.raises(ConfigError, match="line 1 is no result of a batch"):
            BatchOutput(output.path, given, resume=True)
        assert output.path.read_text() == text
    with pytest.raises(ConfigError, match="already exists"):
        BatchOutput(given.path, given, resume=True)
