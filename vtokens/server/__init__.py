"""The HTTP endpoint of `python -m vtokens.serve`."""
