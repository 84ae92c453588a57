"""outlines, by OpenAI's form and by vLLM's: a choice, an expression, a schema, streams. Prints what it got, as JSON."""

import json
import sys
from typing import Any, Literal

import openai
import outlines
import pydantic


class Castle(pydantic.BaseModel):
    kind: Literal["ruin", "palace"]
    tall: bool


client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
by_openai, by_vllm = outlines.from_openai(client, "demo-edge"), outlines.from_vllm(client, "demo-edge")
asked: dict[str, Any] = {"temperature": 0}
found = {
    "text": by_openai("What is machine learning?", **asked),
    "schema": json.loads(by_openai("A castle?", Castle, **asked)),
    "streamed": "".join(by_openai.stream("What is machine learning?", **asked)),
    "vllm schema": json.loads(by_vllm("A castle?", Castle, **asked)),
    "choice": by_vllm("Is it tall?", Literal["yes", "no"], **asked),
    "digits": by_vllm("How tall?", outlines.regex("[0-9]{3}"), **asked),
    "grammar": by_vllm("Is it tall?", outlines.cfg('start: "yes" | "no"'), **asked),
}
print(json.dumps(found))
