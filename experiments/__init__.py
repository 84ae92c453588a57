"""What each part is worth: ablations, sweeps and the layer split, on running servers."""
