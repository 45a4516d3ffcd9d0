"""MLPs: what a layer does with each token."""
