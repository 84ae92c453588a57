"""Judges answers that are programs: takes the code out of the text and runs it with its tests, within limits."""
