"""Invented reports, their rendered pages, and a headless browser."""
