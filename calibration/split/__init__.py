"""Fits the thresholds of a split model's exits: traces them along the whole model's answers, bounds what they change"""
