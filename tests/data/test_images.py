"""Any picture as RGB or grey: modes, transparency, 16 bits, EXIF, broken files, arrays."""

import errno
import io
import os

import numpy as np
import pytest
import torch
from made import close, encoded, halves, noise
from PIL import Image, ImageFile

from dino_lib.data import images
from dino_lib.data.images import InputError, UnreadableImage, read_image, to_channels

ORIENTATION = 0x0112  # the EXIF tag


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "I", "F"]
)
@pytest.mark.parametrize("channels, expected", [(1, "L"), (3, "RGB")])
def test_every_mode_becomes_the_asked_one(mode, channels, expected):
    gray = mode.startswith(("I", "F"))
    image = (
        Image.fromarray(np.full((4, 6), 9, np.float32)).convert(mode)
        if gray
        else Image.new(mode, (6, 4))
    )
    converted = to_channels(image, channels)
    assert (converted.mode, converted.size) == (expected, (6, 4))


def test_what_is_rgb_already_stays_the_same():
    image = noise()
    converted = to_channels(image)
    assert converted.tobytes() == image.tobytes()
    assert (
        to_channels(to_channels(image, 1), 3).getpixel((3, 3))
        == (image.convert("L").getpixel((3, 3)),) * 3
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(tmp_path, kind):
    values = np.array([[0, 257, 300 * 257 // 3, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep", kind)
    got = np.asarray(read_image(tmp_path / "deep", 1))
    assert got.tolist() == [[0, 1, 100, 156, 255]]
    assert np.asarray(read_image(tmp_path / "deep"))[0, 3].tolist() == [156] * 3
    Image.fromarray(values[:, 1:4]).save(tmp_path / "dim", kind)  # a dim picture stays dim
    assert np.asarray(read_image(tmp_path / "dim", 1)).tolist() == [[1, 100, 156]]


def test_integers_and_floats_of_32_bits():
    def levels(values, dtype):
        return np.asarray(to_channels(Image.fromarray(np.array([values], dtype)), 1))[0].tolist()

    assert levels([0, 25700, 65535], np.int32) == [0, 100, 255]  # older PIL's mode for 16-bit files
    assert levels([-1000, 0, 1000], np.int32) == [0, 128, 255]
    assert levels([0, 100_000, 200_000], np.int32) == [0, 128, 255]
    assert levels([0.0, 0.2, 1.0], np.float32) == [0, 51, 255]
    assert levels([7.0, 7.0], np.float32) == [0, 0]
    with pytest.raises(UnreadableImage, match="infinite values or NaN"):
        levels([0.0, np.nan], np.float32)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 51))
    assert [to_channels(rgba).getpixel((x, 0)) for x in range(3)] == [
        (255, 0, 0),
        (255, 255, 255),
        (204, 204, 204),
    ]
    la = Image.new("LA", (1, 1), (0, 0))
    assert to_channels(la, 1).getpixel((0, 0)) == 255

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "index.png", transparency=0)  # one index
    palette.save(tmp_path / "bytes.png", transparency=bytes([0, 255]))  # one opacity an index
    palette.save(tmp_path / "opaque.png")
    for name, first in [
        ("index.png", (255, 255, 255)),
        ("bytes.png", (255, 255, 255)),
        ("opaque.png", (10, 20, 30)),
    ]:
        image = read_image(tmp_path / name)
        assert [image.getpixel((x, 0)) for x in range(2)] == [first, (200, 100, 50)], name

    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert read_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert close(read_image(tmp_path / "print.jpg").getpixel((8, 8)), (255, 0, 0))


@pytest.mark.parametrize("kind, quality", [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {})])
@pytest.mark.parametrize(
    "orientation, size, red, blue",
    [
        (1, (32, 16), (4, 8), (28, 8)),
        (2, (32, 16), (28, 8), (4, 8)),
        (3, (32, 16), (28, 8), (4, 8)),
        (6, (16, 32), (8, 4), (8, 28)),  # turned clockwise: what was left is on top
        (8, (16, 32), (8, 28), (8, 4)),
    ],
)
def test_camera_rotation_is_undone_once(tmp_path, kind, quality, orientation, size, red, blue):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    halves().save(tmp_path / "turned", kind, exif=exif, **quality)
    image = read_image(tmp_path / "turned")
    assert image.size == size
    assert close(image.getpixel(red), (255, 0, 0), 12) and close(
        image.getpixel(blue), (0, 0, 255), 12
    )
    again = to_channels(image)
    assert again.size == size and again.tobytes() == image.tobytes()
    assert not image.info  # nothing is left for others to apply once more


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    halves().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03")
    assert read_image(tmp_path / "a.jpg").size == (32, 16)


def test_exif_that_makes_pil_stumble_does_not_cost_the_picture(monkeypatch):
    def stumble(image):
        raise TypeError("bad tag")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", stumble)
    assert to_channels(halves()).tobytes() == halves().tobytes()


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("BMP", {}),
    ],
)
def test_a_file_cut_anywhere_is_unreadable_or_whole(kind, options):
    """Half grey pictures are never given silently; a missing end mark costs nothing."""
    whole = encoded(noise(), kind, **options)
    pixels = read_image(io.BytesIO(whole)).tobytes()
    refused = 0
    for length in range(0, len(whole), 7):
        try:
            assert read_image(io.BytesIO(whole[:length])).tobytes() == pixels
        except UnreadableImage:
            refused += 1
    assert refused >= len(whole) // 7 * 0.95


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty, or not an image"),
        (b"this is a letter", "empty, or not an image"),
        (encoded(noise(), "JPEG")[:-300], "truncated"),
        (encoded(noise(), "PNG").replace(b"IDAT", b"IDAX"), "noise.jpg"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "noise.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as error:
        read_image(path)
    assert str(path) in str(error.value)
    with path.open("rb") as file, pytest.raises(UnreadableImage, match=r"noise\.jpg"):
        read_image(file)


def test_a_lazily_opened_broken_file_is_named_too(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(), "JPEG")[:-300])
    with Image.open(path) as image, pytest.raises(UnreadableImage, match=r"cut\.jpg \(.*truncated"):
        to_channels(image)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    noise().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 // 2 - 1)
    with pytest.raises(UnreadableImage, match=r"bomb\.png \(.*decompression bomb"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    "error", [IndexError("index out of range"), MemoryError(), OverflowError("too large")]
)
def test_whatever_a_decoder_raises_is_one_exception(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    noise().save(tmp_path / "odd.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(UnreadableImage, match=r"odd\.png \(\w+"):
        read_image(tmp_path / "odd.png")


def test_wrong_arguments_are_not_unreadable_images(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(TypeError, match="expected a picture, got list: give a PIL image, a path"):
        to_channels([[0, 1]])
    for call in (
        lambda: read_image(tmp_path / "none.jpg", 4),
        lambda: to_channels(noise(), 2),
    ):
        with pytest.raises(ValueError, match="must be 3") as error:
            call()
        assert not isinstance(error.value, UnreadableImage)


# --- arrays, tensors, paths ---


GREY = np.array([[0, 51], [102, 255]], np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], -1)  # (2, 2, 3)


@pytest.mark.parametrize(
    "picture, expected",
    [
        (GREY, np.stack([GREY] * 3, -1)),
        (GREY[..., None], np.stack([GREY] * 3, -1)),
        (torch.from_numpy(GREY), np.stack([GREY] * 3, -1)),
        (torch.from_numpy(GREY)[None], np.stack([GREY] * 3, -1)),
        (GREY > 100, np.stack([(GREY > 100) * 255] * 3, -1)),
        (COLOUR, COLOUR),
        (COLOUR[:, ::-1], COLOUR[:, ::-1]),  # not contiguous
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        (COLOUR.astype(np.uint16) * 257, COLOUR),
        (COLOUR / 255, COLOUR),
        ((COLOUR / 255).astype(np.float32), COLOUR),
        (torch.from_numpy(COLOUR / 255).permute(2, 0, 1).bfloat16(), None),
    ],
)
def test_arrays_and_tensors_are_pictures(picture, expected):
    image = to_channels(picture)
    assert (image.mode, image.size) == ("RGB", (2, 2))
    if expected is None:  # bfloat16 has 8 bits of mantissa
        assert close(np.asarray(image), COLOUR, 1)
    else:
        assert np.asarray(image).tolist() == expected.tolist()


def test_an_array_with_opacity_is_laid_on_white():
    clear = np.zeros((1, 1, 4), np.uint8)
    assert to_channels(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_channels(np.zeros((1, 1, 2), np.uint8), 1).getpixel((0, 0)) == 255  # grey and opacity


@pytest.mark.parametrize(
    "picture, words",
    [
        (np.zeros((3, 24, 24), np.uint8), "uint8 (3, 24, 24): give"),  # channels first
        (torch.zeros(24, 24, 3, dtype=torch.uint8), "uint8 (24, 24, 3): give"),  # last
        (np.zeros((2, 3, 9, 9), np.uint8), "uint8 (2, 3, 9, 9)"),
        (np.zeros((0, 9, 3), np.uint8), "uint8 (0, 9, 3)"),
        (np.zeros((9, 9), np.int64), "int64 (9, 9): give"),
        (torch.full((3, 9, 9), -0.4), "outside of [0, 1]: leave out the normalisation"),
        (np.full((9, 9), np.nan), "outside of [0, 1]"),
        (np.full((9, 9, 3), 255.0), "outside of [0, 1]"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_remedy(picture, words):
    with pytest.raises(TypeError) as error:
        to_channels(picture)
    assert words in str(error.value)


def test_a_path_is_a_picture(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    assert to_channels(str(tmp_path / "a.png")).tobytes() == noise().tobytes()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_image("~/a.png").tobytes() == to_channels("~/a.png").tobytes() == noise().tobytes()


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"  # Latin-1
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UnreadableImage, match=r"caf\\udce9\.png \(empty, or not") as error:
        read_image(os.fsdecode(path))
    str(error.value).encode("utf-8")


def test_too_many_open_files_are_not_the_images_fault(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(InputError, match="Too many open files: take num_workers=0, or raise"):
        read_image(tmp_path / "a.png")
