"""Tool calls: what a client may ask for, and reading calls and thoughts out of the text that a model writes."""
