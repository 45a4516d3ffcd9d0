"""Retrieval: passages of a corpus for each question."""
