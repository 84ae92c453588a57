"""Owns vLLM: its processes, arguments and version; restarts an engine that is lost."""
