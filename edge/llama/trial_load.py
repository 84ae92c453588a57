"""A trial load of a GGUF file, for a process that may die of it. Knows no engine.

llama.cpp ends its process over metadata that it takes for granted (dozens of GGML_ASSERTs, other ones for each
architecture). Everything but reading and storing the weights is done here: a few milliseconds, little memory.
"""

import ctypes

import llama_cpp as c

CONTEXT = 64
_ERROR = 4  # GGML_LOG_LEVEL_ERROR


def refusal(path: str) -> str | None:
    """Why llama.cpp refuses the model, or a context for it; None if it takes both. Where it aborts, it aborts here."""
    said: list[str] = []

    @c.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            said.append(text.decode(errors="replace").strip())

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
    return None if context else (said or ["no reason given"])[0]
