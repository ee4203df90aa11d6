"""Drafters: who guesses the tokens that a decode worker verifies."""
