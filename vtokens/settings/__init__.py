"""Typed settings: their schema, the command line, checks across fields."""
