"""Fits vLLM's arguments to a CPU and its memory: the number format, and how much KV to hold."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vllm.platforms import current_platform

from cloud.engine.model_size import ModelSize, damage, model_size
from common import hardware
from common.errors import StartError
from common.hardware import GIB, Memory, Setting, choose_dtype, cpu_flags, gib

SPARE_TOKENS = 64
"""KV that a sequence may take beyond its context: the rest of its last block, and a draft."""
UNKNOWN_KV_BYTES = GIB
"""KV of a model whose files do not say how much it needs."""
RUNTIME_BYTES = GIB
"""What vLLM and torch take themselves."""
FEW_CORES = 2
"""On which vLLM computes with one thread, and leaves the other core to its scheduler."""
BINDING = ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS")
SHARE = 0.5
"""Of the memory that is free beside weights and vLLM: the most that KV takes. The rest is for other programs."""


def threads(cores: int, given: Mapping[str, str]) -> dict[str, str]:
    """Environment for vLLM's threads on a CPU with so many usable cores; nothing where `given` decides it.

    vLLM binds its threads to the first cores, every vLLM to the same ones, where two of them starve each other (0.2 and
    8.8 answers a second, in place of 5 and 5). A single thread gains nothing by that: the system may move it.
    """
    if not current_platform.is_cpu() or cores > FEW_CORES or any(name in given for name in BINDING):
        return {}
    return dict(zip(BINDING, ("nobind", "1"), strict=True))


def choose_kv_bytes(context_kv: int | None, sequences: int, free: int | None) -> Setting:
    """Bytes of KV cache: what all `sequences` can fill, or less if that is more than a share of the memory.

    `context_kv`: bytes of one sequence that fills its context; `free`: bytes beside weights and vLLM. At least one
    context is taken, even if that is more than the share.
    """
    if context_kv is None:
        return Setting(UNKNOWN_KV_BYTES, "the model's files do not say how much it needs")
    wanted, most = sequences * context_kv, math.inf if free is None else int(SHARE * free)
    if wanted <= most:
        return Setting(wanted, f"enough for {sequences} sequences that fill their context")
    less = f"{sequences} sequences could fill {gib(wanted)}, but beside the weights {gib(free or 0)} are free"
    return Setting(max(int(most), context_kv), less)


def refusal(weights: int | None, context_kv: int | None, dtype: str, memory: Memory | None) -> str | None:
    """Why a model with so many bytes of weights, and of KV for one context, cannot work here; None if it may."""
    if weights is None or memory is None:
        return None
    needed = weights + (context_kv or 0)
    if needed <= memory.available + memory.swap:
        return None
    return f"needs {gib(needed)} of memory (weights {gib(weights)} in {dtype}, KV {gib(context_kv or 0)}); {memory}"


def fit(args: Any) -> dict[str, Setting]:
    """Sets what AsyncEngineArgs leaves open for a CPU; returns the settings by name. Nothing is set for a GPU.

    Raises StartError for a model that is too large for the memory, or whose files are damaged. Blocks while it reads
    files or asks the hub.
    """
    if not current_platform.is_cpu():
        return {}
    settings = fit_to(args, model_size(args.model), cpu_flags(), hardware.memory())
    if fault := damage(Path(args.model)):
        raise StartError(f"{args.model}: {fault}")
    return settings


def fit_to(args: Any, size: ModelSize, flags: Collection[str], memory: Memory | None) -> dict[str, Setting]:
    """`fit`, for a machine with these CPU flags and memory."""
    if args.dtype == "auto":
        dtype = choose_dtype(flags, size.weight_bytes("float32"))
    else:
        dtype = Setting(str(args.dtype).removeprefix("torch."), "set in the configuration")
    name = {"half": "float16", "float": "float32"}.get(str(dtype.value), str(dtype.value))
    weights, kv = size.weight_bytes(name), size.kv_bytes(name)
    length = args.max_model_len if isinstance(args.max_model_len, int) else size.trained
    context_kv = kv * (length + SPARE_TOKENS) if kv and length else None
    if reason := refusal(weights, context_kv if size.keeps_all else 0, name, memory):
        raise StartError(f"{args.model}: {reason}")
    free = None if memory is None else max(0, memory.available - (weights or 0) - RUNTIME_BYTES)
    blocks = args.num_gpu_blocks_override
    cache = choose_kv_bytes(context_kv, args.max_num_seqs or 1, free)
    if args.kv_cache_memory_bytes is not None:
        if memory and (weights or 0) + args.kv_cache_memory_bytes > memory.available + memory.swap:
            wanted = f"{gib(args.kv_cache_memory_bytes)} of KV (cloud.engine_args.kv_cache_memory_bytes)"
            raise StartError(f"{args.model}: {wanted} and weights of {gib(weights or 0)} are too much; {memory}")
        cache = Setting(args.kv_cache_memory_bytes, "set in the configuration")
    elif blocks and kv and args.block_size:
        cache = Setting(blocks * args.block_size * kv, f"{blocks} blocks are set in the configuration")
    args.dtype, args.kv_cache_memory_bytes = dtype.value, cache.value
    return {"dtype": dtype, "kv_cache_bytes": cache}
