"""Shows what training sees: `python -m vtokens.data.inspect`."""
