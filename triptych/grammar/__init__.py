"""Structured output: grammars, and what they allow token by token (by llguidance)."""
