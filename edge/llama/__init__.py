"""llama.cpp's C interface and GGUF files: the only place that imports llama_cpp."""
