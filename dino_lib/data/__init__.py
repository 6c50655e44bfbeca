"""What comes in: datasets, any picture as it is, and where a step's views come from."""
