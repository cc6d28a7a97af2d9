"""The run directory: atomic files, records, the lock, events, the ledger and checkpoints."""
