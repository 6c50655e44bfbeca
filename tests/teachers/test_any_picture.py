"""A teacher's transform gives every kind of picture the feature of the same picture as RGB."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.nn.functional import cosine_similarity

from dino_lib.data.images import PHOTOS
from dino_lib.teachers.load import load_teacher


@pytest.fixture(scope="module")
def photos():
    return load_teacher("photos")


@pytest.fixture(scope="module")
def picture():
    """A photograph whose feature is another one when it is turned, inverted or recoloured."""
    return Image.open(PHOTOS / "airplanes.jpg").convert("RGB")


def cosine(teacher, *seen):
    return cosine_similarity(*teacher.model(torch.stack(seen))[:, None]).item()


def with_exif(picture):
    """Stored lying on its side, with the word that turns it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    file = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    return Image.open(file)


def sixteen_bits(picture):
    return Image.fromarray(np.asarray(picture.convert("L")).astype("uint16") * 257)


def array(picture):
    return np.asarray(picture).copy()


KINDS = {  # name: (the picture of that kind, the same as RGB)
    "palette": (lambda p: p.quantize(256), lambda p: p.quantize(256).convert("RGB")),
    "transparent palette": (
        lambda p: p.convert("RGBA").quantize(256),
        lambda p: p.convert("RGBA").quantize(256).convert("RGB"),
    ),
    "1-bit": (lambda p: p.convert("1"), lambda p: p.convert("1").convert("RGB")),
    "L": (lambda p: p.convert("L"), lambda p: p.convert("L").convert("RGB")),
    "I;16": (sixteen_bits, lambda p: p.convert("L").convert("RGB")),
    "I": (lambda p: sixteen_bits(p).convert("I"), lambda p: p.convert("L").convert("RGB")),
    "F": (lambda p: p.convert("L").convert("F"), lambda p: p.convert("L").convert("RGB")),
    "RGBA": (lambda p: p.convert("RGBA"), lambda p: p),
    "LA": (lambda p: p.convert("LA"), lambda p: p.convert("L").convert("RGB")),
    "CMYK": (lambda p: p.convert("CMYK"), lambda p: p),
    "EXIF": (with_exif, lambda p: p),
    "array (H, W, 3)": (array, lambda p: p),
    "array (H, W)": (lambda p: array(p.convert("L")), lambda p: p.convert("L").convert("RGB")),
    "array (H, W, 4)": (lambda p: array(p.convert("RGBA")), lambda p: p),
    "tensor (3, H, W)": (lambda p: torch.from_numpy(array(p)).permute(2, 0, 1), lambda p: p),
    "tensor (1, H, W)": (
        lambda p: torch.from_numpy(array(p.convert("L")))[None],
        lambda p: p.convert("L").convert("RGB"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_feature_of_the_same_as_rgb(photos, picture, kind):
    made, same = KINDS[kind]
    x, expected = photos.transform(made(picture)), photos.transform(same(picture))
    assert x.shape == expected.shape == (3, 96, 96) and x.dtype == torch.float32
    assert cosine(photos, x, expected) > 0.999


def test_a_wrong_reading_would_show(photos, picture):
    expected = photos.transform(picture)
    for wrong in (
        picture.transpose(Image.Transpose.ROTATE_90),
        ImageOps.invert(picture),
        Image.merge("RGB", picture.split()[::-1]),
        picture.convert("L").convert("RGB"),
    ):
        assert cosine(photos, photos.transform(wrong), expected) < 0.99
