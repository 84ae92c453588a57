"""Ablations, and the server settings and request fields that each of them needs."""
