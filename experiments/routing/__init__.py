"""Requests routed as wholes: quality over cost of router, token gate, both, and chance, with RouteLLM's metrics"""
