"""llama.cpp through its C interface, and checks of GGUF files; no other folder imports llama_cpp."""
