"""What runs inside vLLM's engine process: schedulers, mailboxes for drafts, patches."""
