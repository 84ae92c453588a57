"""Batches: many requests as JSON lines, sent side by side, their results in the order of the input; resumable"""
