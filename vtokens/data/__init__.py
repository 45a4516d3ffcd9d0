"""From files of questions to batches of token ids."""
