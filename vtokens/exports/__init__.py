"""Writes and checks a trained table in the formats of other programs."""
