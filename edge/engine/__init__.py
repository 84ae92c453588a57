"""The llama.cpp engine: one thread, continuous batching, sequences that requests lease."""
