"""The questions that the demo models are trained and evaluated on."""
