"""Trains and evaluates the early exits of a split model."""
