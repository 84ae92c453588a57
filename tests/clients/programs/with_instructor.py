"""instructor: an object by a tool, by a schema, streamed in parts, and a list. Prints what it got, as JSON."""

import json
import sys
from typing import Any, Literal

import instructor
import openai
import pydantic


class Bridge(pydantic.BaseModel):
    kind: Literal["arch", "beam"]
    tall: bool


found: dict[str, Any] = {}
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    plain = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
    client = instructor.from_openai(plain, mode=mode)
    asked: dict[str, Any] = {
        "model": "demo-edge",
        "messages": [{"role": "user", "content": "A bridge?"}],
        "temperature": 0,
        "max_retries": 0,
    }
    found[mode.value] = client.create(response_model=Bridge, **asked).model_dump()
    parts = list(client.create_partial(response_model=Bridge, **asked))
    found[f"{mode.value} parts"] = parts[-1].model_dump()
print(json.dumps(found))
