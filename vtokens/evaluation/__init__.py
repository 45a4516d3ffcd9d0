"""How good the virtual tokens are, against what, and at what cost."""
