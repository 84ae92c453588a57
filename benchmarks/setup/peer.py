"""Starts what a user might run in place of an edge: vLLM with speculation of its own, or llama-server with a drafter.

    python -m benchmarks.setup.peer ngram|draft-model|llama-server --port PORT [--config FILE] [--set KEY=VALUE]

vLLM is as it comes, without this project's plugin, with the config's model and engine arguments; it speculates five
tokens at a time, as in its documentation. The draft model is the edge's own. What has to be converted for the server is
kept in ~/.cache/edgecloud/models.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli.args import config_parser, load_config, run_sync_program
from common.config_schema import Config
from common.errors import StartError
from common.files import model_root
from common.files.installation import CACHE, LLAMA_SERVER
from common.hardware import usable_cores
from edge.llama import model_file

CONVERTED = CACHE / "models"
NGRAM: Mapping[str, object] = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
DRAFT_MODEL: Mapping[str, object] = {"method": "draft_model", "num_speculative_tokens": 5}
GGUF_TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def vllm(config: Config, port: int, speculation: Mapping[str, object]) -> list[str]:
    """The command line of vLLM's own server for the cloud's model of `config`."""
    from vllm.platforms import current_platform  # seconds of imports that the other server can do without

    from cloud.engine.args import CPU_DEFAULTS, words

    model = model_root.cloud_model(config).path
    defaults = CPU_DEFAULTS if current_platform.is_cpu() else {}
    arguments = {
        **defaults,
        **fitted({**defaults, **config.cloud.vllm_args, "max_num_seqs": config.cloud.sequences}, model),
        "model": model,
        "served_model_name": Path(model).name,
        "host": "127.0.0.1",
        "port": port,
        "speculative_config": dict(speculation),
        "uvicorn_log_level": "warning",
    }
    program = [sys.executable, "-P", "-m", "vllm.entrypoints.launchers.api_server.entry"]
    return program + [word for key, value in arguments.items() for word in words(key, value)]


def fitted(arguments: Mapping[str, object], model: str) -> dict[str, object]:
    """`arguments` with the number format and the KV cache that this project's cloud would choose on this machine."""
    from cloud.engine import hardware

    unset = dict.fromkeys(("num_gpu_blocks_override", "kv_cache_memory_bytes", "block_size"))
    args = argparse.Namespace(**{**unset, **arguments, "model": model})
    hardware.fit(args)
    return {key: value for key, value in vars(args).items() if value is not None}


def ngram(config: Config, port: int) -> list[str]:
    return vllm(config, port, NGRAM)


def draft_model(config: Config, port: int) -> list[str]:
    """vLLM refuses a draft model with a vocabulary of another size."""
    from models.converted import as_safetensors

    dtype = config.cloud.model.dtype
    drafter = as_safetensors(edge_file(config), "bfloat16" if dtype == "auto" else dtype, CONVERTED)
    return vllm(config, port, {**DRAFT_MODEL, "model": str(drafter)})


def llama_server(config: Config, port: int) -> list[str]:
    """The cloud's model in its own number format, and the edge's as it is; as many slots as the cloud has places."""
    from models.converted import as_gguf
    from models.partition.checkpoint import find

    if not LLAMA_SERVER.exists():
        raise StartError("there is no llama-server: run `make llama-server`")
    model, slots = config.cloud.model, config.cloud.sequences
    kind = GGUF_TYPES.get(model.dtype, "bf16")
    options: dict[str, Any] = {
        "--model": as_gguf(find(model_root.cloud_model(config).path), kind, CONVERTED),
        "--model-draft": edge_file(config),
        "--parallel": slots,
        "--ctx-size": slots * model.context_length,
        "--threads": usable_cores(),
        "--host": "127.0.0.1",
        "--port": port,
    }
    return [str(LLAMA_SERVER), "--metrics", *(str(word) for option in options.items() for word in option)]


def edge_file(config: Config) -> Path:
    """The GGUF file of the edge; blocks while it downloads."""
    model = model_root.edge_model(config)
    return model_file.resolve(model.path, model.pattern).absolute()


COMMANDS: dict[str, Callable[[Config, int], list[str]]] = {
    "ngram": ngram,
    "draft-model": draft_model,
    "llama-server": llama_server,
}


def parser() -> argparse.ArgumentParser:
    options = config_parser("Start a server that a user might run in place of an edge.")
    options.add_argument("peer", choices=COMMANDS)
    options.add_argument("--port", type=int, required=True, help="TCP port, on 127.0.0.1")
    return options


def main() -> None:
    args = parser().parse_args()
    command = COMMANDS[args.peer](load_config(args), args.port)
    print(json.dumps(command), flush=True)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(run_sync_program(main))
