"""Scores of answers: normalisation, EM, F1, numbers, dates."""
