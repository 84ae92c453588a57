"""Replays the draft policy over recorded answers, beside the best in hindsight"""
