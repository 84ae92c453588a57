"""The cloud server. vLLM reads its environment when it is imported, so that is set here, before any part of it."""

import os

for _name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
