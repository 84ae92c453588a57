"""Speculative decoding between edge and cloud: draft, decide, verify, commit, emit; and the policy behind it."""
