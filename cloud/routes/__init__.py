"""The cloud's HTTP routes, admission, and what a request may cost."""
