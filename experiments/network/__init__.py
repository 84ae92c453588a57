"""The network sweep: answer modes over round trips, uplinks and numbers of clients."""
