"""GGUF files with virtual tokens, and their checks in llama.cpp."""
