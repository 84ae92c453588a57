"""Limits of API keys: rates, requests at a time, and what a day may take of the clouds, kept over a restart"""
