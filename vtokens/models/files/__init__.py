"""Reads weights from Hugging Face directories and GGUF files."""
