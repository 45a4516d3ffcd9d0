"""Reads checkpoints as they are deployed, dequantised slice by slice.

A weight gets the value that a server multiplies with, computed in float32 and
rounded once, to `base.dtype`. What servers do to activations is not modelled.
"""
