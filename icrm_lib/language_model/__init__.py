"""Causal language models: load safely, pre-train small ones, sample, checkpoints."""
