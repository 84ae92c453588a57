"""The edge server: a small model in llama.cpp, and the decisions what to ask the cloud; no torch, no vLLM."""
