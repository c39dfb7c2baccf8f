"""From a hard mask to a smaller network: plan, apply, verify, store."""
