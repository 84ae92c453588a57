"""The network sweep: ways of answering over round trips, uplinks and numbers of clients."""
