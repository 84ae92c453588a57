"""Drafts without a model: what followed the same tokens earlier, in prompt, answer or prediction."""
