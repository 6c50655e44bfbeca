"""The embedded dataset: ten kinds of small creatures in a soft clutter, drawn by code.

Each picture comes with the mask of its objects. A reader without network or GPU sees DINO learn on
them in minutes. Each class joins a palette, a texture and an outline, as they go together in
nature. Every palette, every texture and every outline belongs to exactly two classes, and no two
classes share more than one of the three: one cue alone tells at most half of the classes apart, any
two cues tell all of them.

What else could tell the pictures apart is taken away. Objects lie anywhere, cut by the border too,
so that a map which looks at the middle finds little. The clutter has all palettes' colours and is
fine, so that a crop without the object says little about its picture, which could else be told from
others by its ground alone. The two classes of a palette have equally large objects, and equally
much of them is painted, so that a histogram of the colours tells little more than the palette.
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
# what of a texture is painted: where its value is above this. 40 % of the dots and rings, half of
# the others, and so the two classes of each palette are painted alike
LEVELS = {"dots": 0.26, "rings": 0.30, "stripes": 0.0, "rays": 0.0, "checks": 0.0}
# the area of an outline of radius 1
AREAS = {"disc": 2.26, "star": 1.74, "flower": 2.30, "drop": 1.66, "leaf": 1.46}


def _texture(kind: str, u: Tensor, v: Tensor, freq: Tensor) -> Tensor:
    """A value around 0 over object coordinates u, v (n, S, S).

    freq (n, 1, 1) is in periods a unit length.
    """
    w = 2 * math.pi * freq
    if kind == "stripes":
        return torch.sin(w * u)
    if kind == "rings":
        return torch.sin(1.4 * w * torch.hypot(u, v))  # as many as fit: one ring alone is no cue
    if kind == "rays":
        return torch.sin(torch.round(freq * 4.5) * torch.atan2(v, u))
    if kind == "checks":
        return 2 * torch.sin(w * 0.7 * u) * torch.sin(w * 0.7 * v)
    return torch.cos(0.75 * w * u) + torch.cos(0.75 * w * v)  # dots


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


class _Artist:
    """Draws n pictures of one class at a time, all numbers from one generator."""

    def __init__(self, n: int, size: int, rng: np.random.Generator):
        self.n, self.size, self.rng = n, size, rng
        axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")  # (size, size) in [-1, 1]

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """(n, 1, 1), or (n, *shape)."""
        values = self.rng.uniform(low, high, (self.n, *(shape or (1, 1))))
        return torch.from_numpy(values.astype(np.float32))

    def grown(self, cells: Tensor) -> Tensor:
        """(n, C, k, k) -> (n, C, size, size), smooth."""
        size = (self.size, self.size)
        return F.interpolate(cells, size, mode="bicubic", align_corners=True)

    def ground(self) -> Tensor:
        """Fine spots of all palettes flow into each other, with finer light and shade on them."""
        hues = torch.tensor(list(PALETTES.values()))
        spots = torch.from_numpy(self.rng.integers(0, len(hues), (self.n, 9, 9)))
        hue = hues[spots] + self.uniform(-0.04, 0.04)
        saturation = self.uniform(0.15, 0.6, 9, 9)
        brightness = self.uniform(0.3, 0.9, 9, 9)
        ground = self.grown(_hsv(hue, saturation, brightness)).clamp(0, 1)
        light = self.grown(self.uniform(-1, 1, 1, 18, 18))
        grain = self.uniform(-1, 1, 1, self.size, self.size)
        return (ground * (1 + 0.12 * light + 0.12 * grain)).clamp(0, 1)

    def creature(self, name: str, scale: float) -> tuple[Tensor, Tensor]:
        """A creature somewhere: RGB (n, 3, size, size), and (n, size, size) positive inside."""
        palette, texture, outline = CLASSES[name]
        radius = self.uniform(0.48, 0.95) * scale
        angle = self.uniform(-0.6, 0.6)
        reach = 1 - 0.25 * radius  # up to three quarters of the radius lie outside
        dx = self.x - reach * self.uniform(-1, 1)
        dy = self.y - reach * self.uniform(-1, 1)
        unit = 1.3 * radius / math.sqrt(AREAS[outline])
        u = (torch.cos(angle) * dx + torch.sin(angle) * dy) / unit
        v = (torch.cos(angle) * dy - torch.sin(angle) * dx) / unit

        pattern = _texture(texture, u, v, self.uniform(2.0, 2.6)) - LEVELS[texture]
        paint = torch.sigmoid(4 * (pattern + self.uniform(-0.5, 0.5)))
        hue = PALETTES[palette] + self.uniform(-0.1, 0.1) + 0.06 * (paint - 0.5)
        light = 1 - 0.15 * (dx + dy)  # from the upper left
        value = (self.uniform(0.15, 0.45) + self.uniform(0.35, 0.6) * paint) * light
        saturation = self.uniform(0.45, 0.95) - self.uniform(0.0, 0.4) * paint
        return _hsv(hue, saturation, value.clamp(0, 1)), _outline(outline, u, v)


def _draw(name: str, n: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """n images of one class: uint8 (n, 3, size, size) and masks bool (n, size, size)."""
    artist = _Artist(n, size, rng)
    image = artist.ground()
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    alone = artist.uniform(0, 1) > 0.2  # one picture in five has a second, smaller creature
    for scale, absent in [(1.0, torch.zeros_like(alone)), (0.8, alone)]:
        creature, inside = artist.creature(name, scale)
        inside = inside.masked_fill(absent, -1.0)
        cover = torch.sigmoid(inside * size)[:, None]  # an edge about a pixel wide
        image = creature * cover + image * (1 - cover)
        masks |= inside > 0
    noise = rng.normal(0, 0.015, image.shape).astype(np.float32)
    image = image + torch.from_numpy(noise)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), masks


class Shapes(InMemory):
    """n images of ten classes in turn, the same for the same (n, seed, size) on every machine.

    `images` uint8 (n, 3, size, size), `labels` int64 (n,), `masks` bool (n, size, size) (True on
    the objects); indexing gives (PIL image, label), as torchvision's datasets do. Different seeds
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
