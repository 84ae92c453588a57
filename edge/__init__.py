"""The edge server: a small model in llama.cpp that drafts, and what decides when to ask the cloud; no torch or vLLM."""
