"""Cuts a model into edge segments (GGUF, llama.cpp) and a cloud tail (safetensors, vLLM), and checks the pieces."""
