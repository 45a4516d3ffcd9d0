"""Turns the answers of an evaluation into tables, pictures and a page."""
