"""Experiments on running servers: ablations, sweeps and the layer split; most modules here are commands."""
