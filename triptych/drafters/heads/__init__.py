"""Trained draft heads: a transformer layer or two that read the target's hidden states."""
