"""Text to tokens and back: chat templates in a sandbox, whole characters, stop strings."""
