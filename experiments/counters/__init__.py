"""Reads the counters of edge and cloud servers from their metrics."""
