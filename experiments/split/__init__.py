"""Compares the layer split with cloud only and with a naive split, beside the CE-CoLLM paper's figures."""
