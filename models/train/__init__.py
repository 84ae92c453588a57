"""Trains the demo models and exports them as safetensors for vLLM and GGUF for llama.cpp."""
