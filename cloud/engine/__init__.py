"""Runs vLLM: its arguments, version, processes and KV events; restarts a lost engine."""
