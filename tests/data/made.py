"""Pictures, folders and datasets that several tests of this wing make."""

import io

import numpy as np
from PIL import Image


def noise(height=24, width=32, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def halves(size=(32, 16)):
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def close(pixel, expected, tolerance=4):
    return np.abs(np.subtract(pixel, expected)).max() <= tolerance


def save_all(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name, "PNG")


class Items:
    """A dataset whose items are values, or exceptions to raise."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


def photo_folder(root, n=6):
    root.mkdir()
    for i in range(n):
        Image.new("RGB", (20 + i, 24), (40 * i, 0, 0)).save(root / f"{i}.png")
    (root / "3.png").write_bytes(b"")
    return root
