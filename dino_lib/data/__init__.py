"""What comes in: datasets, any picture as it is, and where a step's views come from.

A dataset, a format of files or a way to make views in batches belongs here; the recipe of the views
is the method's. Nothing here knows a Config or a network.
"""
