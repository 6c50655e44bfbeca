"""Any picture as "RGB" or "L": grey, transparent, 16 bits, turned by a camera, an array, a tensor.

Every picture that the library looks at goes through `to_channels` or `read_image`. What cannot be
decoded raises one exception, `UnreadableImage`.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dino_lib.data.say import printable

with contextlib.suppress(ImportError):  # HEIC, where its plugin is installed
    import pillow_heif

    pillow_heif.register_heif_opener()

MODES = {1: "L", 3: "RGB"}  # PIL's mode for so many channels
PHOTOS = Path(__file__).parent / "photos"  # sixteen, which no shipped teacher was trained on
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
REMEDY = "give a PIL image, a path, a uint8 array (H, W[, 3]) or a uint8 tensor (C, H, W)"

Picture = Image.Image | np.ndarray | Tensor | str | os.PathLike


class InputError(RuntimeError):
    """The training data cannot be used; the message says why, and what to do."""


class UnreadableImage(ValueError):
    """An image that cannot be decoded whole; the message is "file (reason)"."""


def read_image(path_or_file: str | os.PathLike | IO[bytes], channels: int = 3) -> Image.Image:
    """The image in a file (the first of several frames) as PIL "RGB" or "L": see `to_channels`.

    Raises UnreadableImage if it is empty, cut off, no image, damaged or absurdly large (PIL's limit
    against decompression bombs), FileNotFoundError if there is none.
    """
    check_channels(channels)
    source = path_or_file
    if isinstance(source, str | os.PathLike):
        source = os.path.expanduser(source)
    with _naming(getattr(source, "name", source)), Image.open(source) as image:
        return _convert(image, channels)


def to_channels(picture: Picture, channels: int = 3) -> Image.Image:
    """Any picture as PIL "RGB" (channels=3) or "L" (channels=1), upright as its EXIF says.

    picture: a PIL image, a path, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), of
    uint8, uint16, bool, or floats in [0, 1].

    Transparency is laid on white, which is what pages and viewers show behind it. 16 bits are
    scaled to 8 by 255 / 65535. PIL's larger integers and floats have no white level, so their own
    range is stretched to 0 .. 255. Raises UnreadableImage if the picture cannot be decoded,
    TypeError if it is none.
    """
    check_channels(channels)
    if isinstance(picture, str | os.PathLike):
        return read_image(picture, channels)
    image = picture if isinstance(picture, Image.Image) else _from_array(picture)
    with _naming(getattr(image, "filename", "") or "image"):
        return _convert(image, channels)  # PIL opens files lazily, so they are decoded here


def check_channels(channels: int) -> None:
    """ValueError if there can be no picture of so many channels."""
    if channels not in MODES:
        raise ValueError(f"channels={channels} must be 3 (RGB) or 1 (grey)")


@contextlib.contextmanager
def _naming(name: object) -> Iterator[None]:
    """Whatever goes wrong inside becomes an UnreadableImage that names the file."""
    name = printable(name)
    try:
        yield
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name} (empty, or not an image that PIL can read)") from error
    except Exception as error:  # a decoder may stumble with any exception over broken bytes
        check_machine(error)
        raise UnreadableImage(f"{name} ({str(error) or type(error).__name__})") from error


def check_machine(error: Exception) -> None:
    """InputError if it is the machine that cannot read more, for no image is at fault then."""
    if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
        raise InputError(f"{error}: take num_workers=0, or raise the limit (ulimit -n)") from error


def _from_array(picture: np.ndarray | Tensor) -> Image.Image:
    what = f"expected a picture, got {type(picture).__name__}"
    if not isinstance(picture, Tensor | np.ndarray):
        raise TypeError(f"{what}: {REMEDY}")
    what = f"{what} of {picture.dtype} {tuple(picture.shape)}"
    x = picture
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() else x  # NumPy has no bfloat16
        x = (x.movedim(0, -1) if x.ndim == 3 else x).numpy()
    if x.ndim == 2:
        x = x[..., None]
    known = x.dtype.kind == "f" or x.dtype in (np.uint8, np.uint16, np.bool_)
    if not known or x.size == 0 or x.ndim != 3 or x.shape[2] > 4:
        raise TypeError(f"{what}: {REMEDY}")
    if x.dtype.kind == "f" and not (x.min() >= 0 and x.max() <= 1):
        raise TypeError(f"{what} with values outside of [0, 1]: leave out the normalisation")
    white = np.iinfo(x.dtype).max if x.dtype.kind == "u" else 1
    x = np.round(x * (255 / white)).astype(np.uint8)
    return Image.fromarray(x[..., 0] if x.shape[2] == 1 else x)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    image.load()  # first, so that what follows cannot hide a broken file
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are whole
        image = image.copy()
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.mode == "LAB":  # PIL makes it RGB, and nothing else
        image = image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    image.info = {}  # all of it is applied now: a second conversion changes nothing
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    x = np.asarray(image).astype(np.float64)
    low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("holds infinite values or NaN")
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, high = 0, 65535
    x = (x - low) * (255 / ((high - low) or 1))
    return Image.fromarray(x.round().astype(np.uint8))
