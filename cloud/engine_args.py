"""vLLM's arguments: this project's own, its defaults for CPU, and whatever else `vllm serve` takes. Starts nothing."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from common.errors import ConfigError

CPU_DEFAULTS: Mapping[str, object] = {
    "block_size": 32,  # prefix hits are per block, and CPU attention wants multiples of 32
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "kv_cache_memory_bytes": 2**30,
    "enforce_eager": True,  # compiling doubles the start (30 s more on 2 cores) for steps a quarter faster
}
OURS = ("model", "scheduler_cls", "speculative_config", "async_scheduling")
"""Engine args that this project sets and nobody else can."""


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"cloud.engine_args: {message}")


def parse(model: str, max_draft_tokens: int, given: Mapping[str, object]) -> Any:
    """The arguments as vLLM's own parser reads them; raises ConfigError for one that it does not know or accept."""
    parser = make_arg_parser(_Parser())
    known = {action.dest for action in parser._actions} - {"help", *OURS}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            reason = "is set by this project" if key in OURS else "is not an engine argument of vLLM"
            raise ConfigError(f"cloud.engine_args.{key}: {reason}{'' if key in OURS else hint}")
    defaults = {"use_tqdm_on_load": False, **(CPU_DEFAULTS if current_platform.is_cpu() else {})}
    ours = {
        "model": model,
        "scheduler_cls": "cloud.vllm_plugin.RemoteDraftScheduler",
        "speculative_config": {
            "method": "custom_class",
            "model": "cloud.vllm_plugin.NoProposer",
            "num_speculative_tokens": max_draft_tokens,
        },
        "async_scheduling": False,
        "served_model_name": [Path(model).name, model] if Path(model).is_dir() else [model],
    }
    arguments = {**defaults, **ours, **given}
    if current_platform.is_cpu() and arguments.get("dtype", "auto") == "auto":
        arguments["dtype"] = "float32"  # most CPUs emulate bfloat16: a verify takes 3 to 4 times as long
    return parser.parse_args([word for key, value in arguments.items() for word in words(key, value)])


def words(key: str, value: object) -> list[str]:
    """One argument as words of a vLLM command line."""
    flag = f"--{key.replace('_', '-')}"
    match value:
        case None:
            return []
        case bool():
            return [flag] if value else [f"--no-{flag[2:]}"]
        case list() | tuple():
            return [flag, *map(str, value)]
        case dict():
            return [flag, json.dumps(value)]
        case _:
            return [f"{flag}={value}"]
