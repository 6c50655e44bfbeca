"""What a feature and an attention map are worth. Nothing here trains or draws.

A new score, probe or map of a network belongs here; it takes a model and tensors, and gives numbers
or tensors.
"""
