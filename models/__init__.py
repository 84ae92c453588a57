"""The demo models: weights, corpus, training; cutting models and training exits."""
