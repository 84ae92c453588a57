"""Several replicas as one service: Ray keeps them running, a front chooses one for each request."""
