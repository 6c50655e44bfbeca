"""The embedded dataset: ten kinds of small creatures on soft backgrounds, drawn by code, with object masks.

It exists so that a reader without network or GPU sees DINO learn in minutes. Each class joins a palette, a
texture and an outline, as they go together in nature. Every palette, every texture and every outline belongs
to exactly two classes, and no two classes share more than one of the three: one cue alone tells at most half
of the classes apart, any two cues tell all of them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# name: (palette, texture, outline)
CLASSES = {
    "ladybird": ("red", "dots", "disc"),
    "starfish": ("red", "rings", "star"),
    "bee": ("yellow", "stripes", "drop"),
    "sunflower": ("yellow", "rays", "flower"),
    "fern": ("green", "rays", "leaf"),
    "turtle": ("green", "checks", "disc"),
    "fish": ("blue", "checks", "drop"),
    "snowflake": ("blue", "stripes", "star"),
    "aster": ("violet", "rings", "flower"),
    "moth": ("violet", "dots", "leaf"),
}
PALETTES = {"red": 0.0, "yellow": 0.13, "green": 0.33, "blue": 0.57, "violet": 0.8}  # hues in [0, 1)


def _texture(kind, u, v, freq):
    """A value in about [-1, 1] over object coordinates u, v (n, S, S); freq (n, 1, 1) periods a unit length."""
    r, theta, w = torch.hypot(u, v), torch.atan2(v, u), 2 * math.pi * freq
    if kind == "stripes":
        return torch.sin(w * u)
    if kind == "rings":
        return torch.sin(w * r)
    if kind == "rays":
        return torch.sin(torch.round(freq * 4.5) * theta)
    if kind == "checks":
        return 2 * torch.sin(w * 0.7 * u) * torch.sin(w * 0.7 * v)
    return torch.cos(w * u) + torch.cos(w * v) - 0.8  # dots


def _outline(kind, u, v):
    """Positive inside, negative outside, over object coordinates in units of the object's radius."""
    r, theta = torch.hypot(u, v), torch.atan2(v, u)
    if kind == "disc":
        return 0.85 - r
    if kind == "star":
        return 0.72 * (1 + 0.38 * torch.cos(5 * theta)) - r
    if kind == "flower":
        return 0.62 + 0.36 * torch.cos(3 * theta).abs() - r
    if kind == "drop":
        return 0.66 + 0.45 * torch.exp(-((theta / 0.45) ** 2)) - r
    return 0.55 * (1 - u**2) - v.abs()  # leaf


def _hsv(h, s, v):
    """Hue in turns, saturation, value, all broadcastable (n, S, S) -> RGB (n, 3, S, S) in [0, 1]."""
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(n + 6 * h, 6)
        channels.append(v - v * s * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(torch.broadcast_tensors(*channels), 1)


def _draw(name, n, size, rng):
    """n images of one class: uint8 (n, 3, size, size) and masks bool (n, size, size)."""
    palette, texture, outline = CLASSES[name]

    def uniform(low, high):
        return torch.from_numpy(rng.uniform(low, high, (n, 1, 1)).astype(np.float32))

    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (size, size) in [-1, 1]

    radius, angle = uniform(0.65, 0.95), uniform(-0.6, 0.6)
    reach = 1 - 0.8 * radius
    dx, dy = x - reach * uniform(-1, 1), y - reach * uniform(-1, 1)
    u = (torch.cos(angle) * dx + torch.sin(angle) * dy) / radius
    v = (torch.cos(angle) * dy - torch.sin(angle) * dx) / radius
    inside = _outline(outline, u, v)

    paint = torch.sigmoid(4 * (_texture(texture, u, v, uniform(2.0, 2.6)) + uniform(-0.5, 0.5)))
    hue = PALETTES[palette] + uniform(-0.05, 0.05) + 0.06 * (paint - 0.5)
    light = 1 - 0.15 * (dx + dy)  # from the upper left
    value = (uniform(0.15, 0.45) + uniform(0.35, 0.6) * paint) * light
    creature = _hsv(hue, uniform(0.45, 0.95) - uniform(0.0, 0.4) * paint, value.clamp(0, 1))

    # the background: spots of all hues flow into each other, so that neither its colours nor any one crop's
    # colours speak of the class or of the picture
    hues = torch.tensor(list(PALETTES.values()))
    spots = hues[torch.from_numpy(rng.integers(0, len(hues), (n, 3, 3)))] + uniform(-0.04, 0.04)
    saturation, brightness = (torch.from_numpy(rng.uniform(low, high, (n, 3, 3)).astype(np.float32))
                              for low, high in [(0.2, 0.7), (0.3, 1.0)])
    ground = F.interpolate(_hsv(spots, saturation, brightness), (size, size), mode="bicubic", align_corners=True)

    cover = torch.sigmoid(inside * size)[:, None]  # an edge about a pixel wide
    image = creature * cover + ground.clamp(0, 1) * (1 - cover)
    image = image * torch.from_numpy(rng.uniform(0.7, 1.1, (n, 3, 1, 1)).astype(np.float32))  # the light's colour
    image = image + torch.from_numpy(rng.normal(0, 0.015, image.shape).astype(np.float32))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), inside > 0


class Shapes(torch.utils.data.Dataset):
    """n images of ten classes in turn, the same for the same (n, seed, size) on every machine.

    `images` uint8 (n, 3, size, size), `labels` int64 (n,), `masks` bool (n, size, size) (True on the
    object); indexing gives (PIL image, label), as torchvision's datasets do. Different seeds give different
    pictures: train on one, test on another.
    """

    classes = tuple(CLASSES)

    def __init__(self, n=4000, *, seed=0, size=48):
        if n < 1 or size < 16:
            raise ValueError(f"n={n} must be at least 1 and size={size} at least 16")
        self.labels = torch.arange(n) % len(CLASSES)
        self.images = torch.empty(n, 3, size, size, dtype=torch.uint8)
        self.masks = torch.empty(n, size, size, dtype=torch.bool)
        for label, name in enumerate(CLASSES):
            rng = np.random.default_rng([seed, label])
            where = torch.nonzero(self.labels == label)[:, 0]
            for part in where.split(128):  # bounded memory
                self.images[part], self.masks[part] = _draw(name, len(part), size, rng)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i].permute(1, 2, 0).numpy()), int(self.labels[i])
