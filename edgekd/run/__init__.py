"""The run directory: atomic files, the lock, events, the ledger, checkpoints, and a card for each JSON file."""
