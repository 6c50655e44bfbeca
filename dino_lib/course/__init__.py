"""The checks of the notebooks' exercises."""
