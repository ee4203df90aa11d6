"""Block identity, block ownership and the prefix cache. Knows no torch, no model and no network."""
