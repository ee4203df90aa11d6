"""Speculation: when to draft, how much, and what is right."""
