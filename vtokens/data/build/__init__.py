"""Builds datasets of records: `python -m vtokens.data.build`."""
