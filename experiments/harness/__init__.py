"""Runs an experiment: trials, clients that time, servers behind simulated networks, a journal, measures."""
