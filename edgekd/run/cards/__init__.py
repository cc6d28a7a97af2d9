"""One typed model for each JSON file of a run, shared by who writes it, who reads it and `--json`."""
