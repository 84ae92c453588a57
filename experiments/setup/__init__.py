"""What can be switched off, and what that asks of servers and requests."""
