"""What people see in a terminal: arguments, answers in colour, and the supervisor of both servers."""
