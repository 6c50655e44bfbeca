"""A teacher's transform gives every kind of picture the feature of the same picture as RGB."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity

from dino_lib.data.datasets import FolderOfImages
from dino_lib.data.images import PHOTOS
from dino_lib.teachers.load import load_teacher


@pytest.fixture(scope="module")
def photos():
    return load_teacher("photos")


@pytest.fixture(scope="module")
def picture():
    """A photograph of 128 x 96 pixels, brighter at its left: turned, cut or inverted it differs."""
    photograph = FolderOfImages(PHOTOS)[1][0].convert("RGB").resize((128, 96))
    ramp = Image.fromarray(np.linspace(255, 60, 128).astype("uint8")[None].repeat(96, 0))
    return Image.composite(photograph, Image.new("RGB", photograph.size), ramp)


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
    "palette": (lambda p: p.quantize(256), lambda p: p),
    "transparent palette": (lambda p: p.convert("RGBA").quantize(256), lambda p: p),
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
    "tensor (1, H, W)": (lambda p: torch.from_numpy(array(p.convert("L")))[None],
                         lambda p: p.convert("L").convert("RGB")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_feature_of_the_same_as_rgb(photos, picture, kind):
    made, same = KINDS[kind]
    x, expected = photos.transform(made(picture)), photos.transform(same(picture))
    assert x.shape == expected.shape == (3, 72, 72) and x.dtype == torch.float32
    features = photos.model(torch.stack([x, expected]))
    assert cosine_similarity(*features[:, None]).item() > 0.999
    other = photos.transform(picture.transpose(Image.Transpose.ROTATE_180))  # it can fail
    assert cosine_similarity(*photos.model(torch.stack([other, expected]))[:, None]).item() < 0.99
