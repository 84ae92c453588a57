"""F2 on the cloud: verifies drafts round by round, or within a running generation."""
