"""What comes in: datasets, images as they are, and the views that are made of them."""
