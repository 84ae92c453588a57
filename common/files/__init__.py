"""Where files are: what the project ships, models in a folder or on the hub, what programs write; JSON lines."""
