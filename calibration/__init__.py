"""Fits the gate to questions of your own: traces, offline simulation, exact risk bounds, a report."""
