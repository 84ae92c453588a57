"""The command `edgecloud`: one module a subcommand, and what main.py and its siblings start."""
