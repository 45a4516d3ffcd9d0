"""A sweep: its candidates, its rungs, and what its directory keeps."""
