"""The layer split on the cloud: sessions' hidden states, and the engine that runs the last layers."""
