"""guidance, whose model for vLLM's server asks for grammars. Prints what it got, as JSON."""

import json
import sys

from guidance import assistant, gen, select, user
from guidance import json as gen_json
from guidance.models.experimental import VLLMModel

SCHEMA = {
    "type": "object",
    "properties": {"tall": {"type": "boolean"}},
    "required": ["tall"],
    "additionalProperties": False,
}

model = VLLMModel("demo-edge", base_url=sys.argv[1] + "/v1", api_key="none", echo=False)
with user():
    model += "Is the tower tall?"
chosen = model
with assistant():
    chosen += select(["yes", "no"], name="choice")
digits = model
with assistant():
    digits += gen(name="digits", regex="[0-9]{3}")
structured = model
with assistant():
    structured += gen_json(name="structured", schema=SCHEMA)
print(
    json.dumps({name: one[name] for name, one in (("choice", chosen), ("digits", digits), ("structured", structured))})
)
