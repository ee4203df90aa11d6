"""Trains drafters: texts that the target wrote, its hidden states, a head that learns from both."""
