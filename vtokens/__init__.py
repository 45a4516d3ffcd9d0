"""Virtual tokens for retrieval-augmented QA on a frozen language model."""
