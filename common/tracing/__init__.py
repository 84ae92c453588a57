"""Tracing (OpenTelemetry): spans of a request on both servers and in vLLM, its trace id in log lines; off by default"""
