"""Drafters around a drafter: drafting ahead, look-up without a model, another vocabulary"""
