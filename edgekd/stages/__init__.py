"""The stages of a run; each reads artefacts of earlier stages and publishes its own folder."""
