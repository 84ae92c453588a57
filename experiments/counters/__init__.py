"""What both servers have counted, read from their metrics."""
