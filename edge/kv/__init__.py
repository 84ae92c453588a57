"""KV of earlier requests (F3): prefix search over live sequences, sealed snapshots in RAM and on disk."""
