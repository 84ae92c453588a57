"""F4, HTTP: typed calls over pooled connections, and what surrounds every request of a server."""
