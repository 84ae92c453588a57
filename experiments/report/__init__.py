"""Reports as JSON, Markdown and one HTML page with plots."""
