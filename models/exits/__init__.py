"""Trains early exits for a model that is cut in pieces."""
