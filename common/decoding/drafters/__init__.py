"""Drafts of one answer: how much, ahead of verdicts; by look-up without a model, in another vocabulary"""
