"""The trained table in other programs. Needs no JAX."""
