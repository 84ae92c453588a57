"""The cloud server: verifies drafts and generates with vLLM."""

import os

# vLLM reads its environment when it is imported, so these are set before anything imports it.
for _name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
