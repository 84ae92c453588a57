"""The layer split at the edge: segments, early exits, and the cloud for the layers that are left."""
