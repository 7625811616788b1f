"""A routed model as a model of lm-evaluation-harness."""
