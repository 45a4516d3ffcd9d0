"""Language models, their weights and their tokenizers."""
