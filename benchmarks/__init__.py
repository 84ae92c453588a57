"""Speed and cost benchmarks, each against a peer in the same run, as ratios."""
