"""The heart, draft -> decide -> verify -> commit -> emit, and its decisions as pure functions."""
