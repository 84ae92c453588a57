"""The edge's OpenAI API: from a request to one completion and its choices."""
