"""Questions from public data sets as published, JSON lines and the demo corpus; errors of invalid files."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from common import config
from common.errors import ConfigError
from experiments.questions import datasets, editing
from experiments.questions.datasets import PUBLIC, load
from experiments.questions.workload import Question

ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add the numbers.", "input": "1, 2", "output": "3"},
]
XSUM = [{"document": "A long story.\nIt went on.", "summary": "A story was told.", "id": "35232142"}]
BOOLQ = [
    {"question": "is water wet", "title": "Water", "answer": True, "passage": "Water is wet."},
    {"question": "is fire cold?", "title": "Fire", "answer": False, "passage": "Fire is hot."},
]
QUAC = {
    "data": [
        {
            "title": "Ada Lovelace",
            "background": "A mathematician.",
            "section_title": "Work",
            "paragraphs": [
                {
                    "id": "C_1",
                    "context": "She wrote a program. CANNOTANSWER",
                    "qas": [
                        {
                            "id": "C_1_q#0",
                            "question": "What did she write?",
                            "answers": [{"text": "a program", "answer_start": 10}],
                            "orig_answer": {"text": "a program", "answer_start": 10},
                            "yesno": "x",
                            "followup": "y",
                        },
                        {
                            "id": "C_1_q#1",
                            "question": "Was it run?",
                            "answers": [{"text": "CANNOTANSWER", "answer_start": 21}],
                            "orig_answer": {"text": "CANNOTANSWER", "answer_start": 21},
                            "yesno": "x",
                            "followup": "n",
                        },
                    ],
                }
            ],
        }
    ]
}
QUAC_ON_HUB = {
    "dialogue_id": "C_1",
    "wikipedia_page_title": "Ada Lovelace",
    "background": "A mathematician.",
    "section_title": "Work",
    "context": "She wrote a program. CANNOTANSWER",
    "turn_ids": ["C_1_q#0", "C_1_q#1"],
    "questions": ["What did she write?", "Was it run?"],
    "followups": [0, 2],
    "yesnos": [2, 2],
    "answers": {"texts": [["a program"], ["CANNOTANSWER"]], "answer_starts": [[10], [21]]},
    "orig_answers": {"texts": ["a program", "CANNOTANSWER"], "answer_starts": [10, 21]},
}
HUMANEVAL = [
    {
        "task_id": "HumanEval/7",
        "prompt": 'def one():\n    """The number 1."""\n',
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
]
IMDB = [{"text": "Dull.<br /><br />Very.", "label": 0}, {"text": "A joy.", "label": 1}]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def asked(spec: str, count: int = 99) -> dict[str, str | None]:
    return {question.prompt: question.answer for question in load(spec, count, seed=0).questions}


# -- which questions


def test_without_data_the_demo_corpus_is_asked() -> None:
    found = load(None, 50, seed=1)
    assert len({question.prompt for question in found.questions}) == 50
    assert all(question.answer for question in found.questions)
    assert found.metric == "exact_match"


def test_the_same_seed_asks_the_same_and_fewer_are_the_first_of_more() -> None:
    many = load(None, 80, seed=3).questions
    assert load(None, 80, seed=3).questions == many
    assert load(None, 10, seed=3).questions == many[:10]
    assert load(None, 80, seed=4).questions != many


def test_a_data_set_with_fewer_questions_is_asked_completely_and_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(lines([{"prompt": f"q{n % 3}", "answer": "a"} for n in range(6)]))
    assert sorted(asked(str(file))) == ["q0", "q1", "q2"]


def test_a_line_may_have_a_metric_of_its_own_and_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(lines([{"prompt": "a", "answer": "b", "metric": "rouge_l"}, {"prompt": "c"}]))
    found = load(str(file), 9, seed=0)
    assert found.metric == "exact_match, rouge_l"
    assert set(found.questions) == {Question("a", "b", metric="rouge_l"), Question("c")}


# -- invalid data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n\n{"prompt": ', r"mine\.jsonl, line 3: .*truncated"),
        ('{"prompt": "a"}\n{"question": "a"}', r"mine\.jsonl, line 2: .*`prompt`"),
        ('{"prompt": "a", "metric": "beauty"}', r"mine\.jsonl, line 1: .*rouge_l.*'beauty'"),
        ('{"prompt": " "}', r"mine\.jsonl, line 1: the prompt is empty"),
        ('{"prompt": "a", "answer": 3}', r"mine\.jsonl, line 1: .*`str \| null`, got `int`"),
        ("\n\n", r"mine\.jsonl: there is no question in it"),
        ("", r"mine\.jsonl: there is no question in it"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(str(file), 9, seed=0)


def test_an_invalid_byte_or_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ConfigError, match=r"mine\.jsonl, line 2"):
        load(str(tmp_path / "mine.jsonl"), 9, seed=0)
    whole = gzip.compress(b'{"prompt": "a"}\n' * 99)
    (tmp_path / "mine.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"mine\.jsonl\.gz: broken gzip"):
        load(str(tmp_path / "mine.jsonl.gz"), 9, seed=0)
    (tmp_path / "mine.jsonl.gz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"mine\.jsonl\.gz: "):
        load(str(tmp_path / "mine.jsonl.gz"), 9, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl: neither a file nor one of general, editing, alpaca"),
        ("alpacas", r"alpacas: neither"),
        ("alpaca:missing.json", r"missing\.json: no such file"),
        ("alpaca:notes.txt", r"notes\.txt: must be \.json"),
        ("boolq:two", r"two: 2 data files in it, none named after test"),
        ("boolq:wrong.jsonl", r"wrong\.jsonl, line 2: .*`bool`, got `str` - at `\$\.answer`"),
        ("alpaca:wrong.json", r"wrong\.json: .*`output`.*\$\[1\]"),
        ("alpaca:blank.json", r"blank\.json, record 1: the prompt is empty"),
        ("imdb:wrong-label.jsonl", r"line 1: a label is 0 or 1, not -1"),
        ("imdb:empty", r"empty: 0 data files"),
    ],
)
def test_an_invalid_data_set_is_reported(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "two").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("one.jsonl", "other.jsonl"):
        (tmp_path / "two" / name).write_text(lines(BOOLQ))
    (tmp_path / "wrong.jsonl").write_text(lines([BOOLQ[0], BOOLQ[1] | {"answer": "no"}]))
    (tmp_path / "wrong.json").write_text(json.dumps([ALPACA[0], {"instruction": "a"}]))
    (tmp_path / "blank.json").write_text(json.dumps([{"instruction": "", "output": "a"}]))
    (tmp_path / "wrong-label.jsonl").write_text(lines([{"text": "a", "label": -1}]))
    with pytest.raises(ConfigError, match=message):
        load(spec, 9, seed=0)


def test_zero_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        load(None, 0, seed=0)


# -- public forms


def test_alpaca_is_a_json_list(tmp_path: Path) -> None:
    (tmp_path / "alpaca_data.json").write_text(json.dumps(ALPACA))
    expected = {"Name a colour.": "Red.", "Add the numbers.\n\n1, 2": "3"}
    assert asked(f"alpaca:{tmp_path / 'alpaca_data.json'}") == asked(f"alpaca:{tmp_path}") == expected
    assert load(f"alpaca:{tmp_path}", 1, seed=0).metric == "rouge_l"


def test_xsum_is_json_lines_also_compressed(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines(XSUM).encode()))
    ((prompt, answer),) = asked(f"xsum:{tmp_path}").items()
    assert prompt == "Article: A long story.\nIt went on.\n\nSummarize the above article in 1 sentence."
    assert answer == "A story was told."


def test_boolq_is_json_lines_and_the_test_split_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(lines([BOOLQ[0] | {"question": "never asked"}]))
    (tmp_path / "dev.jsonl").write_text(lines(BOOLQ))
    assert asked(f"boolq:{tmp_path}") == {
        "Water is wet.\nQuestion: is water wet?\nAnswer (yes or no):": "yes",
        "Fire is hot.\nQuestion: is fire cold?\nAnswer (yes or no):": "no",
    }
    assert load(f"boolq:{tmp_path}", 9, seed=0).metric == "accuracy"


def test_quac_asks_each_turn_after_the_earlier_ones_and_is_the_same_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "val_v0.2.json").write_text(json.dumps(QUAC))
    (tmp_path / "hub.jsonl").write_text(lines([QUAC_ON_HUB]))
    about = (
        "Title: Ada Lovelace\nBackground: A mathematician.\nSection: Work\nPassage: She wrote a program. CANNOTANSWER"
    )
    first = f"{about}\n\nQuestion: What did she write?\nAnswer:"
    expected = {first: "a program", f"{first} a program\n\nQuestion: Was it run?\nAnswer:": "CANNOTANSWER"}
    assert asked(f"quac:{tmp_path}") == asked(f"quac:{tmp_path / 'hub.jsonl'}") == expected
    assert load(f"quac:{tmp_path}", 9, seed=0).metric == "token_f1"


def test_imdb_is_read_alike_from_text_files_and_from_rows(tmp_path: Path) -> None:
    for folder, name, text in (("neg", "0_2.txt", IMDB[0]["text"]), ("pos", "0_9.txt", IMDB[1]["text"])):
        (tmp_path / "aclImdb" / "test" / folder).mkdir(parents=True)
        (tmp_path / "aclImdb" / "test" / folder / name).write_text(str(text))
    (tmp_path / "rows.jsonl").write_text(lines(IMDB))
    found = asked(f"imdb:{tmp_path / 'aclImdb'}")
    assert found == asked(f"imdb:{tmp_path / 'aclImdb' / 'test'}") == asked(f"imdb:{tmp_path / 'rows.jsonl'}")
    assert found == {
        "Dull.\n\nVery.\nQuestion: Is this review positive or negative?\nAnswer:": "negative",
        "A joy.\nQuestion: Is this review positive or negative?\nAnswer:": "positive",
    }


def test_an_answer_to_humaneval_is_right_if_it_passes_the_tests(tmp_path: Path) -> None:
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines(HUMANEVAL).encode()))
    ((prompt, answer),) = asked(f"humaneval:{tmp_path}").items()
    assert str(HUMANEVAL[0]["prompt"]).strip() in prompt
    found = load(f"humaneval:{tmp_path}", 9, seed=0)
    assert found.metric == "tests_passed"
    (question,) = found.questions
    assert [question.score(text) for text in (answer or "", "```python\ndef one():\n    return 2\n```")] == [1.0, 0.0]


def test_a_humaneval_task_whose_prompt_begins_another_function_is_reported(tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text(lines([*HUMANEVAL, HUMANEVAL[0] | {"entry_point": "two"}]))
    with pytest.raises(ConfigError, match=r"wrong\.jsonl, line 2: the prompt does not begin a function 'two'"):
        load(f"humaneval:{tmp_path / 'wrong.jsonl'}", 9, seed=0)


# -- the hub


HUB = {"alpaca": ALPACA, "xsum": XSUM, "boolq": BOOLQ, "quac": [QUAC_ON_HUB], "imdb": IMDB, "humaneval": HUMANEVAL}


def pretend_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake pyarrow whose Parquet files are JSON lists."""

    class Table:
        def __init__(self, path: Path) -> None:
            self.to_pylist = lambda: json.loads(path.read_text())

    arrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    vars(arrow).update(parquet=parquet, ArrowException=ValueError)
    vars(parquet).update(read_table=Table)
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)


@pytest.mark.parametrize("name", PUBLIC)
def test_each_data_set_is_read_from_its_copy_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pyarrow(monkeypatch)
    fetched = []

    def download(repository: str, file: str) -> str:
        fetched.append((repository, file))
        (tmp_path / "0000.parquet").write_text(json.dumps(HUB[name]))
        return str(tmp_path / "0000.parquet")

    monkeypatch.setattr(datasets, "_download", download)
    from_hub = asked(name)
    assert fetched == [(PUBLIC[name].repository, PUBLIC[name].file)]
    (tmp_path / "rows.jsonl").write_text(lines(HUB[name]))
    assert from_hub == asked(f"{name}:{tmp_path / 'rows.jsonl'}")
    assert from_hub


def test_an_unexpected_row_of_a_parquet_file_is_reported_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_pyarrow(monkeypatch)
    (tmp_path / "0000.parquet").write_text(json.dumps([*BOOLQ, {"question": "a"}]))
    with pytest.raises(ConfigError, match=r"0000\.parquet, row 3: .*`passage`"):
        load(f"boolq:{tmp_path / '0000.parquet'}", 9, seed=0)


def test_without_pyarrow_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(datasets, "_download", lambda *_: pytest.fail("fetched what cannot be read"))
    (tmp_path / "0000.parquet").write_bytes(b"PAR1")
    for spec in (f"boolq:{tmp_path / '0000.parquet'}", "boolq"):
        with pytest.raises(ConfigError, match="pip install pyarrow"):
            load(spec, 9, seed=0)


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: str, **named: str) -> str:
        assert named == {"repo_type": "dataset", "revision": "refs/convert/parquet"}
        raise ConnectionError("no route\nto the hub")

    pretend_pyarrow(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(ConfigError, match=r"^cannot fetch google/boolq from the hub \(no route\); give a file"):
        load("boolq", 9, seed=0)


def test_what_models_heldout_writes_is_read(tmp_path: Path) -> None:
    written = subprocess.run(
        [sys.executable, "-m", "models.heldout", "--per-kind", "2"], capture_output=True, check=True
    ).stdout
    (tmp_path / "held-out.jsonl").write_bytes(written)
    found = load(str(tmp_path / "held-out.jsonl"), 999, seed=0).questions
    assert len(found) == len({msgspec.json.decode(line)["prompt"] for line in written.splitlines()})


def test_the_demo_pair_is_asked_its_corpus_and_any_other_general_prompts() -> None:
    demo, other = (config.load(flags=flags, environment={}) for flags in ([], ["cloud.model.path=Owner/Large"]))
    assert datasets.spec_for(None, demo) is None
    assert datasets.spec_for(None, other) == "general"
    assert datasets.spec_for("mine.jsonl", demo) == datasets.spec_for("mine.jsonl", other) == "mine.jsonl"


def test_editing_prompts_hold_the_text_that_they_change_and_all_differ() -> None:
    found = load("editing", 999, seed=0).questions
    assert len({question.prompt for question in found}) == len(editing.CHANGES)
    assert all(
        text in question.prompt for question in found for text, change in editing.CHANGES if change in question.prompt
    )
    assert all(question.kind == "editing" and not question.answer for question in found)


def test_general_prompts_are_half_code_and_half_prose_without_right_answers() -> None:
    found = load("general", 999, seed=0).questions
    assert len({question.prompt for question in found}) == len(found) == 40
    assert [question.kind for question in found].count("code") == 20
    assert {question.answer for question in found} == {None}
