"""The method: virtual tokens, the split training step, generation."""
