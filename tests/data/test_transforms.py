"""What a network sees of a picture: one care for all of them, and the same numbers everywhere."""

import numpy as np
import pytest
import torch
from made import Items, close, halves, noise
from PIL import Image
from torchvision.transforms import v2

from dino_lib.data.images import to_channels
from dino_lib.data.store import decode_store
from dino_lib.data.transforms import EvalTransform, as_seen, normalize

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
SEE = EvalTransform(16, MEAN, STD)


@pytest.mark.parametrize("size", [(24, 24), (40, 24), (24, 41), (16, 16), (10, 9)])
def test_the_store_and_the_transform_see_the_same(size):
    image = noise(size[1], size[0])
    stored = decode_store(Items((image, 0)), 16)[0]
    assert torch.equal(normalize(stored, MEAN, STD)[0], SEE(image))


@pytest.mark.parametrize("size", [(24, 24), (80, 48), (48, 82)])
def test_it_is_the_usual_evaluation(size):
    """torchvision's resize and crop of the middle, but for the rounding of the crop."""
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    usual = v2.Compose(
        [
            v2.Resize(16, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(16),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    atol = 1e-6 if size[0] == size[1] else 0.15  # a step of the ramp is 0.1 to 0.3
    torch.testing.assert_close(SEE(image), usual(image), atol=atol, rtol=0)


def test_the_values_are_normalised():
    x = SEE(Image.new("RGB", (30, 20), (255, 0, 51)))
    expected = torch.tensor([(1 - 0.1) / 0.5, (0 - 0.2) / 0.25, (0.2 - 0.3) / 0.2])
    assert (x.shape, x.dtype) == ((3, 16, 16), torch.float32)
    torch.testing.assert_close(x, expected[:, None, None].expand_as(x))


MODES = ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "PA", "RGBA", "I;16", "I", "F"]


def in_mode(mode):
    """A picture of 40 x 30 in one of PIL's modes; 16 bits and more with values of that range."""
    image = noise(30, 40)
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257)
    return image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_is_seen_as_its_rgb_or_grey_picture(mode, channels):
    image = in_mode(mode)
    see = EvalTransform(16, MEAN[:channels], STD[:channels])
    assert torch.equal(see(image), see(to_channels(image, channels)))
    assert see(image).shape == (channels, 16, 16)
    grey = mode in ("L", "LA", "I", "I;16")
    if grey:  # and that picture is the right one
        assert torch.equal(see(image), see(noise(30, 40).convert("L")))


def test_arrays_and_tensors_are_resized_and_cropped():
    image = noise(30, 40)
    array = np.array(image)
    expected = SEE(image)
    for same in (array, torch.from_numpy(array).permute(2, 0, 1), array / 255):
        assert torch.equal(SEE(same), expected)


def test_a_cameras_turn_is_undone():
    image = halves((30, 20))
    image.getexif()[0x0112] = 6
    x = SEE(image)
    red, blue = x[0, :4].mean(), x[0, -4:].mean()  # what was left is on top
    assert red > blue + 1
    picture, seen = as_seen(image, SEE, (8, 8), 24)
    assert picture.height > picture.width
    assert seen[0, :4].mean() > seen[0, -4:].mean() + 1


def test_what_is_seen_is_shown():
    image = noise(30, 40)
    picture, x = as_seen(image, SEE, (8, 8))
    assert picture.size == (16, 16) and torch.equal(x, SEE(image))
    whole, x = as_seen(image, SEE, (8, 8), 32)
    assert whole.size == (40, 24) and x.shape == (3, 24, 40)
    assert close(np.asarray(whole), np.asarray(image.resize((40, 24), Image.Resampling.BICUBIC)), 0)
    grey, x = as_seen(image, EvalTransform(16, (0.5,), (0.5,)), (8, 8))
    assert grey.mode == "L" and x.shape == (1, 16, 16)
    with pytest.raises(ValueError, match="size=4 is less than one patch"):
        as_seen(image, SEE, (8, 8), 4)
    with pytest.raises(ValueError, match="must be an EvalTransform"):
        as_seen(image, v2.ToImage(), (8, 8))
