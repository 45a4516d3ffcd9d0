"""Estimates memory and speed of programs for devices that are not here."""
