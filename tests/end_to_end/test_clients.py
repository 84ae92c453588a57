"""Clients that know nothing of this project, unmodified, against the edge: completions, chats, streams, errors.

`openai` runs with every test run; the others have a virtual environment of their own (`make test-clients`).
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from models.corpus import questions as corpus
from tests.conftest import Edge

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-clients" / "bin"
MODEL = "demo-edge"
QUESTION: Any = [{"role": "user", "content": "What is machine learning?"}]
ANSWER = "Machine learning is"
clients = pytest.mark.clients


# openai


@pytest.fixture
def client(edge: Edge) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def test_openai_lists_and_finds_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "edge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_openai_chats_and_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (whole.choices[0].message.content or "").startswith(ANSWER)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_openai_completes_with_echo_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["The capital", "A"], max_tokens=5, temperature=0, echo=True, logprobs=2, n=2, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text.startswith("The capital")
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.token_logprobs is not None and scores.tokens is not None
    assert len(scores.tokens) == len(scores.token_logprobs) > 5


def test_openai_reads_a_chats_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=4, max_completion_tokens=6
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.content is not None
    assert [len(token.top_logprobs) for token in scores.content] == [4] * 6
    assert all(token.logprob <= 0 for token in scores.content)


class Place(pydantic.BaseModel):
    kind: Literal["city", "country"]
    north: bool


def test_openai_parses_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place, seed=1)
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_openai_raises_its_own_errors(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="another"):
        create(model="another", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="context") as refusal:
        create(model=MODEL, messages=[{"role": "user", "content": "word " * 3000}])
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refusal:
        create(model=MODEL, messages=QUESTION, temperature=9, stream=True)
    assert refusal.value.param == "temperature"


async def test_openai_works_asynchronously_too(edge: Edge) -> None:
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key="none") as client:
        stream = await client.completions.create(model=MODEL, prompt="1 1", max_tokens=5, stream=True, logprobs=1)
        assert "".join([chunk.choices[0].text async for chunk in stream])


# The others, as programs of their own


def run(*command: str, home: Path, script: str | None = None, ok: bool = True) -> str:
    """What a client's program prints; it finds nothing of this machine's settings, and no way out of it."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home), "LLM_USER_PATH": str(home)}
    environment = {**os.environ, **offline, "OPENAI_API_KEY": "none", "HOME": str(home)}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        input=script,
        env=environment,
        cwd=home,
        text=True,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture
def llm_home(edge: Edge, tmp_path: Path) -> Path:
    settings = [
        {"model_id": "edge", "model_name": MODEL, "api_base": edge.url + "/v1", "supports_schema": True},
        {"model_id": "edge-text", "model_name": MODEL, "api_base": edge.url + "/v1", "completion": True},
        {"model_id": "wrong", "model_name": "another", "api_base": edge.url + "/v1"},
    ]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(settings))
    return tmp_path


@clients
@pytest.mark.parametrize("more", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm_chats_and_completes(llm_home: Path, more: list[str]) -> None:
    ask = ["llm", "-o", "temperature", "0", *more]
    assert run(*ask, "-m", "edge", "What is machine learning?", home=llm_home).startswith(ANSWER)
    assert run(*ask, "-m", "edge-text", "<|user|>What is AI?<|assistant|>", home=llm_home).strip()


@clients
def test_llm_continues_a_chat_asks_for_json_and_shows_errors(llm_home: Path) -> None:
    run("llm", "-m", "edge", "What is AI?", home=llm_home)
    assert run("llm", "-c", "And what is machine learning?", home=llm_home).strip()
    place = run("llm", "-m", "edge", "--schema", json.dumps(Place.model_json_schema()), "x", home=llm_home)
    Place.model_validate_json(place)
    assert "no model 'another' here" in run("llm", "-m", "wrong", "x", home=llm_home, ok=False)
    assert "in a context of" in run("llm", "-m", "edge", "x " * 3000, home=llm_home, ok=False)


LANGCHAIN = """
import asyncio, json, sys
from typing import Literal
import openai
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

class Place(BaseModel):
    kind: Literal["city", "country"]

where = dict(base_url=sys.argv[1] + "/v1", api_key="none", model="demo-edge", temperature=0, max_retries=0)
chat, text = ChatOpenAI(**where), OpenAI(**where, max_tokens=12)
found = {}
found["chat"] = chat.invoke("What is machine learning?").content
found["streamed"] = "".join(chunk.content for chunk in chat.stream("What is machine learning?"))
found["asynchronous"] = asyncio.run(chat.ainvoke("What is machine learning?")).content
found["batch"] = [answer.content for answer in chat.batch(["What is AI?", "What is machine learning?"])]
scored = chat.bind(logprobs=True, top_logprobs=2).invoke("What is AI?")
found["logprobs"] = len(scored.response_metadata["logprobs"]["content"])
found["tokens"] = scored.usage_metadata["output_tokens"]
found["place"] = chat.with_structured_output(Place, method="json_schema").invoke("What is AI?").kind
found["text"] = text.invoke("<|user|>What is AI?<|assistant|>")
found["text streamed"] = "".join(text.stream("<|user|>What is AI?<|assistant|>"))
found["texts"] = [one[0].text for one in text.generate(["The", "A"]).generations]
try:
    chat.invoke("word " * 3000)
except openai.BadRequestError as error:
    found["error"] = error.code
print(json.dumps(found))
"""


@clients
def test_langchain_chats_completes_streams_and_batches(edge: Edge, tmp_path: Path) -> None:
    found = json.loads(run("python", "-", edge.url, script=LANGCHAIN, home=tmp_path))
    assert found["chat"].startswith(ANSWER)
    assert found["chat"] == found["streamed"] == found["asynchronous"] == found["batch"][1]
    assert found["logprobs"] == found["tokens"] > 3
    assert found["place"] in ("city", "country")
    assert found["text"] == found["text streamed"] != ""
    assert len(found["texts"]) == 2
    assert found["error"] == "context_length_exceeded"


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


def lm_eval(edge: Edge, home: Path, task: str, definition: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The task's results, run by lm-eval over local-completions."""
    (home / f"{task}.yaml").write_text(definition)
    (home / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = f"model={MODEL},base_url={edge.url}/v1/completions,num_concurrent=4,max_retries=1"
    flags = ["--tasks", task, "--include_path", str(home), "--output_path", str(home / "out")]
    run("lm_eval", "--model", "local-completions", "--model_args", where, *flags, home=home)
    (report,) = (home / "out").rglob("results_*.json")
    results: dict[str, float] = json.loads(report.read_text())["results"][task]
    return results


@clients
def test_lm_eval_finds_the_exact_match_that_the_models_report(edge: Edge, tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "answer": answer} for _, prompt, answer in corpus.held_out_pairs()]
    results = lm_eval(edge, tmp_path, "held_out", EXACT, rows)
    table = (ROOT / "models" / "README.md").read_text()
    said = re.search(r"\*\*all\*\* \| (\d+) \| [\d.]+ \| ([\d.]+)", table)
    assert said is not None
    assert len(rows) == int(said[1])
    # A near-tie may fall otherwise in a batch than alone: two answers of all that are asked.
    assert results["exact_match,none"] == pytest.approx(float(said[2]), abs=0.0005 + 2 / len(rows))


@clients
def test_lm_eval_ranks_answers_by_the_likelihood_of_an_echo(edge: Edge, tmp_path: Path) -> None:
    pairs = [pair for pair in corpus.held_out_pairs() if pair[0] == "capital"][:40]
    rows = [
        {"prompt": prompt, "choices": [answer, *(pairs[(i + step) % len(pairs)][2] for step in (7, 13, 21))]}
        for i, (_, prompt, answer) in enumerate(pairs)
    ]
    assert lm_eval(edge, tmp_path, "choice", CHOICE, rows)["acc,none"] > 0.8
