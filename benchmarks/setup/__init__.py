"""What benchmarks run on: the models of a config, the peers beside ours, required ratios."""
