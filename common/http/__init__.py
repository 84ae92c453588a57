"""HTTP (F4): typed client calls over pooled connections, and the middleware of both servers."""
