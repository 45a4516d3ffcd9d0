"""General tasks, asked through lm-evaluation-harness."""
