"""vLLM's engine arguments: those that this project sets, its defaults for CPU, and any other of `vllm serve`.

What depends on the machine, `hardware.py` sets when the engine starts.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from common.errors import ConfigError

try:
    from vllm.entrypoints.common.cli_args import make_arg_parser
except ModuleNotFoundError:  # before vLLM 0.33
    from vllm.entrypoints.launchers.cli_args import make_arg_parser

CPU_DEFAULTS: Mapping[str, object] = {
    "block_size": 32,  # prefix hits are per block, and CPU attention wants multiples of 32
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "enforce_eager": True,  # compiling doubles the start (30 s more on 2 cores) for steps a quarter faster
}
FIXED = ("model", "scheduler_cls", "speculative_config", "async_scheduling", "structured_outputs_config")
"""Engine arguments that only this project sets."""
TAIL_FIXED: Mapping[str, object] = {
    "scheduler_cls": "cloud.vllm_plugin.tail_scheduler.TailScheduler",
    "worker_extension_cls": "cloud.vllm_plugin.tail_scheduler.TailWorker",
    "enable_prompt_embeds": True,
    "enable_prefix_caching": False,  # a session's KV stays in its live request, and token ids are placeholders
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
}
"""What this project sets, and only it, for an engine that takes hidden states."""


def parse(model: str, max_draft_tokens: int, user_args: Mapping[str, object]) -> Any:
    """The arguments as vLLM's own parser returns them; raises ConfigError for an unknown one or a wrong value."""
    project_args = {
        "scheduler_cls": "cloud.vllm_plugin.scheduler.RemoteDraftScheduler",
        "speculative_config": {
            "method": "custom_class",
            "model": "cloud.vllm_plugin.scheduler.NoProposer",
            "num_speculative_tokens": max_draft_tokens,
        },
        # Grammars apply from the first token on, as at the edge, which does not know where a model ends its reasoning.
        "structured_outputs_config": {"backend": "guidance", "enable_in_reasoning": True},
        "served_model_name": [Path(model).name, model] if Path(model).is_dir() else [model],
    }
    return _parse("cloud.engine_args", model, project_args, user_args, FIXED)


def parse_tail(folder: str, user_args: Mapping[str, object]) -> Any:
    """As `parse`, for an engine that takes hidden states; it has no metrics, because vLLM has one set a process."""
    return _parse("cloud.split.engine_args", folder, TAIL_FIXED, user_args, {*FIXED, *TAIL_FIXED})


def _parse(
    key: str, model: str, project_args: Mapping[str, object], user_args: Mapping[str, object], fixed: Collection[str]
) -> Any:
    parser = make_arg_parser(_parser(key))
    accepted = {action.dest for action in parser._actions} - {"help", *fixed}
    for name in user_args:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            reason = "is set by this project" if name in fixed else "is not an engine argument of vLLM"
            raise ConfigError(f"{key}.{name}: {reason}{'' if name in fixed else hint}")
    defaults = {"use_tqdm_on_load": False, **(CPU_DEFAULTS if current_platform.is_cpu() else {})}
    arguments = {**defaults, "model": model, "async_scheduling": False, **project_args, **user_args}
    return parser.parse_args([word for name, value in arguments.items() for word in words(name, value)])


def _parser(key: str) -> FlexibleArgumentParser:
    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ConfigError(f"{key}: {message}")

    return Parser()


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
