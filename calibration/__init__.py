"""Fits the gate, or a router, to questions of your own: traces, offline simulation, exact risk bounds, a report."""
