"""llama.cpp in a thread of its own: sequences lent to requests, jobs decoded by continuous batching."""
