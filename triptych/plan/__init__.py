"""How many of what: sizes of pools from costs, lengths and goals, before anything is bought."""
