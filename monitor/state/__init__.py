"""State: panes, the transaction that keeps them, and the captured events."""
