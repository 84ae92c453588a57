"""Quantizes a GGUF file to one of llama.cpp's K types, which only llama.cpp's own quantizer can write."""

import ctypes
from pathlib import Path

import llama_cpp as c

from common.errors import StartError

TYPES = {"q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q4_k_m": 15, "q4_k_s": 14, "q3_k_m": 12, "q2_k": 10}
"""llama.cpp's numbers of the types (LLAMA_FTYPE_MOSTLY_...); it uses a finer type for some of the matrices."""
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def quantize(source: Path, target: Path, name: str, keep_parts: bool = False) -> None:
    """Writes `source`, in f32 or f16, to `target` as `name`, one of TYPES; raises StartError if llama.cpp cannot.

    `keep_parts`: `source` is the first of several files, and so many named TARGET-0000N-of-0000M.gguf are written.
    """
    errors: list[str] = []

    @c.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            errors.append(text.decode(errors="replace").strip())

    settings = c.llama_model_quantize_default_params()
    settings.ftype = TYPES[name]
    settings.keep_split = keep_parts
    c.llama_log_set(log, ctypes.c_void_p(None))
    failed = c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    c.llama_log_set(c.llama_log_callback(0), ctypes.c_void_p(None))
    if failed:
        reason = (errors or ["no reason given"])[0]
        raise StartError(f"model file {source}: llama.cpp cannot quantize it to {name}: {reason}")
