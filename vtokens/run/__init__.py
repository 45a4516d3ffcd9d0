"""A training run: its loop, checkpoints, metrics and work directory."""
