"""The photographs in this folder: `python dino_lib/data/photos/make.py DATA_ROOT`, where
torchvision's Caltech101 lies.

The first held-back photograph of each of sixteen classes, chosen before any network had seen them,
at most 224 pixels on its longer side.
"""

import sys
from pathlib import Path

from dino_lib.data.datasets import open_dataset

CLASSES = [
    "airplanes", "bonsai", "butterfly", "car_side", "chair", "elephant", "flamingo", "helicopter",
    "kangaroo", "Leopards", "llama", "Motorbikes", "panda", "rooster", "sunflower", "watch",
]

held_back = open_dataset("caltech101", sys.argv[1], "test", download=False)
for name in CLASSES:
    image, _ = held_back[held_back.labels.index(held_back.classes.index(name))]
    image.thumbnail((224, 224))
    image.save(Path(__file__).parent / f"{name.lower()}.jpg", quality=88)
