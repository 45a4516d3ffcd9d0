"""Token mixers: what a layer does across tokens."""
