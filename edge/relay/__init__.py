"""Requests that a cloud with OpenAI's API answers as a whole: what the edge does not support, and tools"""
