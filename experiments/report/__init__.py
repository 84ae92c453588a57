"""Renders the reports of all experiments as JSON, Markdown and one HTML page with plots."""
