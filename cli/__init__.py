"""The command line: flags, coloured answers, and the supervisor that starts and restarts both servers."""
