"""The edge's OpenAI API: resolves a request once, runs its answers and renders the response."""
