"""The edge server: llama.cpp, without torch or vllm."""
