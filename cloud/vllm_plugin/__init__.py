"""What runs inside vLLM's engine processes: schedulers, mailboxes for drafts, patches."""
