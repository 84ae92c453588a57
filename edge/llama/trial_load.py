"""Loads a GGUF file on trial, without its weights, in a process that may abort.

llama.cpp aborts its process over metadata that it does not check (dozens of GGML_ASSERTs, different ones for each
architecture). The trial does everything except reading and storing the weights: a few milliseconds, little memory.
"""

import ctypes

import llama_cpp as c

CONTEXT = 64
"""Tokens of the trial's context."""
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def refusal(path: str) -> str | None:
    """Why llama.cpp refuses the model or a context for it; None if it accepts both. May abort the process."""
    errors: list[str] = []

    @c.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            errors.append(text.decode(errors="replace").strip())

    c.llama_log_set(log, ctypes.c_void_p(None))
    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.n_gpu_layers, settings.load_mode, settings.no_alloc = 0, c.LLAMA_LOAD_MODE_NONE, True
    model = c.llama_model_load_from_file(path.encode(), settings)
    options = c.llama_context_default_params()
    options.n_ctx = CONTEXT
    context = c.llama_init_from_model(model, options) if model else None
    if context:
        c.llama_free(context)
    if model:
        c.llama_model_free(model)
    c.llama_log_set(c.llama_log_callback(0), ctypes.c_void_p(None))
    return None if context else (errors or ["no reason given"])[0]
