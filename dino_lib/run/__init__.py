"""A training run: its settings, its parts, the loop, and its folder."""
