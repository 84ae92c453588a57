"""The layer split in the cloud: sessions' hidden states and the engine of the last layers."""
