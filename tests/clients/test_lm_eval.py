"""lm-eval, unmodified, against the edge of a pair at its defaults: generated answers, and likelihoods of given ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from models.corpus import questions as corpus
from tests.clients.client_programs import ROOT, run_client

pytestmark = pytest.mark.clients
EXACT = """
task: held_out
dataset_path: json
dataset_kwargs: {data_files: {test: held_out.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "<|user|>{{prompt}}<|assistant|>"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], max_gen_toks: 160, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: choice
dataset_path: json
dataset_kwargs: {data_files: {test: choice.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "<|user|>{{prompt}}<|assistant|>"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
Row = dict[str, Any]


def lm_eval(url: str, model: str, home: Path, task: str, definition: str, rows: list[Row]) -> tuple[Row, list[Row]]:
    """The task's results and its samples in the order of `rows`, run by lm-eval over local-completions."""
    home.mkdir(exist_ok=True)
    (home / f"{task}.yaml").write_text(definition)
    (home / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = f"model={model},base_url={url}/v1/completions,num_concurrent=4,max_retries=1"
    flags = ["--tasks", task, "--include_path", str(home), "--output_path", str(home / "out"), "--log_samples"]
    run_client("clients", "lm_eval", "--model", "local-completions", "--model_args", where, *flags, home=home)
    (report,) = (home / "out").rglob("results_*.json")
    (log,) = (home / "out").rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in log.read_text().splitlines()]
    return json.loads(report.read_text())["results"][task], sorted(samples, key=lambda one: int(one["doc_id"]))


def test_generates_the_answers_that_the_models_report_says(edge_url: str, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "answer": answer} for _, prompt, answer in corpus.held_out_pairs()]
    results, _ = lm_eval(edge_url, "edge", tmp_path, "held_out", EXACT, rows)
    table = (ROOT / "models" / "README.md").read_text()
    said = re.search(r"\*\*all\*\* \| (\d+) \| [\d.]+ \| ([\d.]+)", table)
    assert said is not None
    assert len(rows) == int(said[1])
    # A near-tie may fall otherwise in a batch than alone: two answers of all that are asked.
    assert results["exact_match,none"] == pytest.approx(float(said[2]), abs=0.0005 + 2 / len(rows))


def likelihoods(url: str, model: str, home: Path) -> tuple[float, list[list[float]]]:
    """The share of right answers among four each, and lm-eval's log likelihood of each of the four."""
    pairs = [pair for pair in corpus.held_out_pairs() if pair[0] == "capital"][:40]
    rows = [
        {"prompt": prompt, "choices": [answer, *(pairs[(i + step) % len(pairs)][2] for step in (7, 13, 21))]}
        for i, (_, prompt, answer) in enumerate(pairs)
    ]
    results, samples = lm_eval(url, model, home / model, "choice", CHOICE, rows)
    return results["acc,none"], [[float(choice[0]) for choice in one["filtered_resps"]] for one in samples]


@pytest.mark.parametrize("model", ["edge", "demo-edge"])
def test_ranks_answers_by_their_likelihood(edge_url: str, tmp_path: Path, model: str) -> None:
    right, _ = likelihoods(edge_url, model, tmp_path)
    assert right > 0.8


def test_finds_in_lossless_answers_the_likelihoods_of_the_cloud(default_pair: tuple[str, str], tmp_path: Path) -> None:
    edge_url, cloud_url = default_pair
    asked = {"lossless": edge_url, "cloud": edge_url, "demo-cloud": cloud_url}
    found = {model: likelihoods(url, model, tmp_path) for model, url in asked.items()}
    assert found["lossless"] == found["cloud"] == found["demo-cloud"]
    assert found["cloud"][0] > 0.8
