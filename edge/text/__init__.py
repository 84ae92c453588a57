"""Text around the models: chat templates in a sandboxed process, tokens to text as they arrive, stop strings."""
