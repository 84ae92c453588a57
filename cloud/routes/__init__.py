"""The cloud's HTTP and WebSocket routes, admission control, and estimates of a request's cost."""
