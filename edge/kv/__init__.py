"""F3 at the edge: prefixes found in live sequences, RAM or on disk, as snapshots that are checked."""
