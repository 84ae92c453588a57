"""F2 in the cloud: one verify round, stateless or in a live request, and drafts for running answers."""
