"""Runs an experiment: servers behind simulated networks, trials, timed clients, measures, a journal."""
