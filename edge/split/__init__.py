"""The edge's part of a model split by layers: its segments, early exits, and the cloud for the remaining layers."""
