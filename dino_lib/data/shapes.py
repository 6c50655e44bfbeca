"""The embedded dataset: ten kinds of small creatures on soft backgrounds, drawn by code.

Each picture comes with the mask of its object. A reader without network or GPU sees DINO learn on
them in minutes. Each class joins a palette, a texture and an outline, as they go together in
nature. Every palette, every texture and every outline belongs to exactly two classes, and no two
classes share more than one of the three: one cue alone tells at most half of the classes apart, any
two cues tell all of them.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.data.items import InMemory

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
# hues in [0, 1)
PALETTES = {"red": 0.0, "yellow": 0.13, "green": 0.33, "blue": 0.57, "violet": 0.8}


def _texture(kind: str, u: Tensor, v: Tensor, freq: Tensor) -> Tensor:
    """A value in about [-1, 1] over object coordinates u, v (n, S, S).

    freq (n, 1, 1) is in periods a unit length.
    """
    w = 2 * math.pi * freq
    if kind == "stripes":
        return torch.sin(w * u)
    if kind == "rings":
        return torch.sin(w * torch.hypot(u, v))
    if kind == "rays":
        return torch.sin(torch.round(freq * 4.5) * torch.atan2(v, u))
    if kind == "checks":
        return 2 * torch.sin(w * 0.7 * u) * torch.sin(w * 0.7 * v)
    return torch.cos(w * u) + torch.cos(w * v) - 0.8  # dots


def _outline(kind: str, u: Tensor, v: Tensor) -> Tensor:
    """Positive inside, negative outside, over object coordinates in units of the radius."""
    r = torch.hypot(u, v)
    theta = torch.atan2(v, u)
    if kind == "disc":
        return 0.85 - r
    if kind == "star":
        return 0.72 * (1 + 0.38 * torch.cos(5 * theta)) - r
    if kind == "flower":
        return 0.62 + 0.36 * torch.cos(3 * theta).abs() - r
    if kind == "drop":
        return 0.66 + 0.45 * torch.exp(-((theta / 0.45) ** 2)) - r
    return 0.55 * (1 - u**2) - v.abs()  # leaf


def _hsv(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Hue in turns, saturation, value, all broadcastable to (n, S, S) -> RGB (n, 3, S, S)."""
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(n + 6 * h, 6)
        channels.append(v - v * s * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(torch.broadcast_tensors(*channels), 1)


def _draw(name: str, n: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """n images of one class: uint8 (n, 3, size, size) and masks bool (n, size, size)."""
    palette, texture, outline = CLASSES[name]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        values = rng.uniform(low, high, (n, *(shape or (1, 1))))
        return torch.from_numpy(values.astype(np.float32))

    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # (size, size) in [-1, 1]

    radius = uniform(0.65, 0.95)
    angle = uniform(-0.6, 0.6)
    reach = 1 - 0.8 * radius
    dx = x - reach * uniform(-1, 1)
    dy = y - reach * uniform(-1, 1)
    u = (torch.cos(angle) * dx + torch.sin(angle) * dy) / radius
    v = (torch.cos(angle) * dy - torch.sin(angle) * dx) / radius
    inside = _outline(outline, u, v)

    pattern = _texture(texture, u, v, uniform(2.0, 2.6))
    paint = torch.sigmoid(4 * (pattern + uniform(-0.5, 0.5)))
    hue = PALETTES[palette] + uniform(-0.05, 0.05) + 0.06 * (paint - 0.5)
    light = 1 - 0.15 * (dx + dy)  # from the upper left
    value = (uniform(0.15, 0.45) + uniform(0.35, 0.6) * paint) * light
    saturation = uniform(0.45, 0.95) - uniform(0.0, 0.4) * paint
    creature = _hsv(hue, saturation, value.clamp(0, 1))

    # the background: spots of all hues flow into each other, so that neither its colours nor any
    # one crop's colours speak of the class or of the picture
    hues = torch.tensor(list(PALETTES.values()))
    spots = torch.from_numpy(rng.integers(0, len(hues), (n, 3, 3)))
    hue = hues[spots] + uniform(-0.04, 0.04)
    saturation = uniform(0.2, 0.7, 3, 3)
    brightness = uniform(0.3, 1.0, 3, 3)
    ground = _hsv(hue, saturation, brightness)
    ground = F.interpolate(ground, (size, size), mode="bicubic", align_corners=True).clamp(0, 1)

    cover = torch.sigmoid(inside * size)[:, None]  # an edge about a pixel wide
    image = creature * cover + ground * (1 - cover)
    image = image * uniform(0.7, 1.1, 3, 1, 1)  # the light's colour
    noise = rng.normal(0, 0.015, image.shape).astype(np.float32)
    image = image + torch.from_numpy(noise)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), inside > 0


class Shapes(InMemory):
    """n images of ten classes in turn, the same for the same (n, seed, size) on every machine.

    `images` uint8 (n, 3, size, size), `labels` int64 (n,), `masks` bool (n, size, size) (True on
    the object); indexing gives (PIL image, label), as torchvision's datasets do. Different seeds
    give different pictures: train on one, test on another.
    """

    classes = tuple(CLASSES)

    def __init__(self, n: int = 4000, *, seed: int = 0, size: int = 48):
        if n < 1 or size < 16:
            raise ValueError(f"n={n} must be at least 1 and size={size} at least 16")
        labels = torch.arange(n) % len(CLASSES)
        images = torch.empty(n, 3, size, size, dtype=torch.uint8)
        masks = torch.empty(n, size, size, dtype=torch.bool)
        for label, name in enumerate(CLASSES):
            rng = np.random.default_rng([seed, label])
            where = torch.nonzero(labels == label)[:, 0]
            for part in where.split(128):  # bounded memory
                images[part], masks[part] = _draw(name, len(part), size, rng)
        super().__init__(images, labels, self.classes, masks)
