"""Experiments on running servers: ablations, sweeps and the layer split; each module here is a command."""
