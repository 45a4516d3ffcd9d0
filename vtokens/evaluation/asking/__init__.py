"""Asks every question of an evaluation and keeps the answers."""
