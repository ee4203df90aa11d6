"""The engine step: row jobs in, tokens out. Knows nothing of the network."""
