import builtins
import itertools
from fractions import Fraction

import av
import pytest
from PIL import Image

from dino_lib.look.clips import CLOCKS, read_frames, write_clip

STEPS = {
    "25": [0.04] * 12,
    "ntsc": [1001 / 30000] * 12,
    "60": [1 / 60] * 12,
    "uneven": [0.1, 0.3, 0.06, 0.5, 0.2],
}


def shades(n, size=(64, 48)):
    return [Image.new("RGB", size, (20 * i, 40, 250 - 20 * i)) for i in range(n)]


def write(path, steps, size=(64, 48)):
    """A clip whose frames are shown for `steps` seconds."""
    start = 0.0
    with write_clip(path, path.suffix) as put:
        for image, step in zip(shades(len(steps), size), steps, strict=True):
            put(image, start, start + step)
            start += step
    return path


def read(path):
    with read_frames(path) as (frames, count):
        frames = list(frames)
    assert count == len(frames)
    return [image for image, *_ in frames], [start for _, start, _ in frames], frames[-1][2]


def encode(path, codec, pix_fmt, images, rate=25):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, pix_fmt
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("suffix", CLOCKS)
def test_what_is_written_is_read_at_its_times(tmp_path, suffix, steps):
    images, starts, end = read(write(tmp_path / f"clip{suffix}", steps))
    expected = [sum(steps[:i]) for i in range(len(steps))]
    if suffix == ".gif" and min(steps) < 0.02:  # no frame is shown shorter than browsers do
        assert end == pytest.approx(sum(steps), abs=0.021)  # the last may be left out
        assert len(starts) < len(steps) and all(
            b - a > 0.019 for a, b in itertools.pairwise(starts)
        )
        return
    assert end == pytest.approx(sum(steps), abs=0.011 if suffix == ".gif" else 1e-4)
    assert starts == pytest.approx(expected, abs=0.011 if suffix == ".gif" else 1e-4)
    for image, shade in zip(images, shades(len(steps)), strict=True):
        assert image.mode == "RGB" and image.size == (64, 48)
        difference = [
            abs(a - b)
            for a, b in zip(image.getpixel((30, 20)), shade.getpixel((0, 0)), strict=True)
        ]
        assert max(difference) < (1 if suffix == ".gif" else 12)


@pytest.mark.parametrize(
    "name, codec, pix_fmt, size",
    [
        ("a.webm", "libvpx-vp9", "yuv420p", (64, 48)),
        ("b.mkv", "ffv1", "bgr0", (37, 21)),
        ("c.avi", "mjpeg", "yuvj420p", (21, 37)),
        ("d.mov", "mpeg4", "yuv420p", (64, 48)),
        ("e", "ffv1", "bgr0", (33, 9)),
    ],
)
def test_any_container_and_odd_sides_are_read(tmp_path, name, codec, pix_fmt, size):
    made = encode(
        tmp_path / f"clip.{'mkv' if name == 'e' else name.split('.')[-1]}",
        codec,
        pix_fmt,
        shades(5, size),
    )
    path = made.rename(tmp_path / name)  # the content tells, not the name
    with read_frames(path) as (frames, _):
        frames = list(frames)
    assert len(frames) == 5 and {image.size for image, *_ in frames} == {size}
    assert [start for _, start, _ in frames] == pytest.approx(
        [0, 0.04, 0.08, 0.12, 0.16], abs=1e-3
    )  # mkv: ms


def test_transparent_frames_of_a_gif_without_times(tmp_path):
    frames = [
        Image.new("RGBA", (15, 10), (255, 0, 0, 0)),
        Image.new("RGBA", (15, 10), (0, 0, 255, 255)),
    ]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    images, starts, end = read(tmp_path / "a.gif")
    assert [image.getpixel((3, 3)) for image in images] == [(255, 255, 255), (0, 0, 255)]
    assert (starts, end) == ([0, 0.1], 0.2)


def test_what_cannot_be_read_says_why(tmp_path):
    text, empty, still, film = (
        tmp_path / name for name in ("text.mp4", "empty.mp4", "still.jpg", "notes.txt")
    )
    for path in (text, film):
        path.write_text("no picture\n" * 50)
    empty.touch()
    shades(1)[0].save(still)
    for path, reason in [
        (text, "no clip that PyAV reads"),
        (empty, "no clip that PyAV reads"),
        (still, "no moving picture"),
        (film, "no moving picture"),
    ]:
        with pytest.raises(ValueError, match=f"{path.name}.*{reason}"), read_frames(path):
            pass
    with pytest.raises(FileNotFoundError, match="nowhere"), read_frames(tmp_path / "nowhere.mp4"):
        pass
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.rate, frame.time_base = 8000, Fraction(1, 8000)
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match=r"sound\.wav.*no moving picture"), read_frames(sound):
        pass


def test_without_pyav_the_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "clip.mp4", STEPS["25"])
    real = builtins.__import__
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *rest: (
            (_ for _ in ()).throw(ImportError(name)) if name == "av" else real(name, *rest)
        ),
    )
    with pytest.raises(ImportError, match="pip install av"), read_frames(path):
        pass
    for kind in CLOCKS:
        with pytest.raises(ImportError, match="pip install av"), write_clip(path, kind):
            pass
