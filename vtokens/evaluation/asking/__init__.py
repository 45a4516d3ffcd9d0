"""Asks all questions of an evaluation and keeps the answers."""
