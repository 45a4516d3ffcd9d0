"""Fields of config.json that most families have, of a small model."""

SIZES = {
  'vocab_size': 64,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
}
