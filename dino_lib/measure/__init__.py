"""What a feature and an attention map are worth. Nothing here trains or draws."""
