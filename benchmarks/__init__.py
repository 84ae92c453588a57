"""Speed, each against a peer in one run, interleaved, as ratios."""
