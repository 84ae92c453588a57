"""The demo models and their training; commands that cut any model for the layer split and train its exits."""
