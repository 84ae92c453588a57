"""Trains the demo models and writes them as safetensors and GGUF."""
