"""A GGUF file in fewer bits, by llama.cpp's own quantizer: the K types, which only it makes. Knows no model."""

import ctypes
from pathlib import Path

import llama_cpp as c

from common.errors import StartError

TYPES = {"q6_k": 18, "q5_k_m": 17, "q5_k_s": 16, "q4_k_m": 15, "q4_k_s": 14, "q3_k_m": 12, "q2_k": 10}
"""llama.cpp's numbers of them (LLAMA_FTYPE_MOSTLY_...); it chooses a finer one for some of the matrices."""
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def quantize(source: Path, target: Path, name: str) -> None:
    """Writes `source`, in f32 or f16, as one of TYPES; raises StartError in one line if llama.cpp cannot."""
    said: list[str] = []

    @c.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            said.append(text.decode(errors="replace").strip())

    settings = c.llama_model_quantize_default_params()
    settings.ftype = TYPES[name]
    c.llama_log_set(log, ctypes.c_void_p(None))
    failed = c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    c.llama_log_set(c.llama_log_callback(0), ctypes.c_void_p(None))
    if failed:
        raise StartError(f"model file {source}: llama.cpp cannot make {name} of it: {(said or ['no reason given'])[0]}")
