"""Clips as streams of frames: read and written one at a time, each with its own time.

Animated images are read by Pillow; films are read, and both are written, by PyAV (extra
"video").
"""

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageSequence

from dino_lib.data.folders import NO_DECODER
from dino_lib.data.images import to_channels

# formats whose frames follow in time; those of a TIFF or MPO are pages and previews
MOVING = ("GIF", "WEBP", "PNG", "AVIF")
# ticks a second of what is written: 24, 25, 30 and 60 frames a second divide 90,000
CLOCKS = {".mp4": 90_000, ".gif": 100}


def is_clip(path: str | Path) -> bool:
    """Whether a file is to be seen as a clip.

    That is an animated image, or what neither is an image nor is named like one.
    """
    path = Path(path).expanduser()
    try:
        with Image.open(path) as image:
            return image.format in MOVING and image.is_animated
    except Exception:  # a decoder may stumble with anything
        kind = Image.registered_extensions().get(path.suffix.lower())
        return path.is_file() and (kind is None or kind in NO_DECODER)


@contextlib.contextmanager
def read_frames(source: str | Path) -> Iterator[tuple[Iterator, int | None]]:
    """Opens a clip: yields (iterator of (PIL image, start, end), their number or None).

    Times are in seconds. Raises FileNotFoundError, ValueError on what is no clip or damaged,
    ImportError without PyAV.
    """
    source = Path(source).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"no clip at {source.absolute()}")
    try:
        image = Image.open(source)
    except Exception:  # as above
        image = None
    if image:
        with image:
            if image.format not in MOVING:
                raise ValueError(f"{source} (a still image, {image.format}: a clip is wanted)")
            yield _image_frames(image), image.n_frames
        return
    av = _need_av()
    try:
        container = av.open(str(source))
    except av.FFmpegError as error:
        raise ValueError(f"{source} (neither a clip that PyAV reads nor an image: "
                         f"{error.strerror})") from error
    with container:
        # "tty" shows any text as a film
        if not container.streams.video or container.format.name == "tty":
            raise ValueError(f"{source} (holds no moving picture)")
        yield _film_frames(source, container, av), container.streams.video[0].frames or None


def _image_frames(image: Image.Image) -> Iterator[tuple[Image.Image, float, float]]:
    start = 0.0
    for frame in ImageSequence.Iterator(image):
        milliseconds = frame.info.get("duration") or 100  # browsers show 0 as 100
        end = start + milliseconds / 1000
        yield to_channels(frame), start, end
        start = end


def _film_frames(source: Path, container, av: ModuleType):
    first = None
    start = 0.0
    try:
        for frame in container.decode(video=0):
            first = first or frame
            start = float((frame.pts - first.pts) * frame.time_base)
            end = start + float((frame.duration or 0) * frame.time_base)
            # recorded calls change their size on the way, and phones turn their frames
            image = frame.to_image(width=first.width, height=first.height)
            yield image.rotate(frame.rotation, expand=True), start, end
    except av.FFmpegError as error:
        when = f"{start:.2f} s after its start" if first else "at its start"
        raise ValueError(f"{source} (damaged {when}: {error.strerror})") from error


@contextlib.contextmanager
def write_clip(path: str | Path, kind: str) -> Iterator[Callable]:
    """Opens a clip of kind ".mp4" or ".gif": yields write(PIL image, start, end).

    Times are in seconds. All frames have one size, of even sides in an .mp4. A GIF
    shows no frame for less than 0.02 s, because browsers would show it for 0.1 s: frames
    that come sooner are left out.
    """
    av = _need_av()
    ticks = CLOCKS[kind]
    clock = Fraction(1, ticks)
    shortest = 2 if kind == ".gif" else 1
    with av.open(str(path), "w", format=kind[1:]) as container:
        if kind == ".gif":
            stream = container.add_stream("gif")
            stream.pix_fmt = "pal8"
            to_frame = _with_palette
        else:  # B-frames blur the last one's time
            stream = container.add_stream("h264", options={"crf": "20", "bf": "0"})
            stream.pix_fmt = "yuv420p"
            to_frame = av.VideoFrame.from_image
        stream.codec_context.time_base = clock
        ends: dict[int, int] = {}  # in ticks, by the frames' starts
        before = -shortest

        def mux(frame) -> None:
            for packet in stream.encode(frame):
                # without a duration the last frame's would be a guess
                packet.duration = max(ends.pop(packet.pts) - packet.pts, shortest)
                container.mux(packet)

        def write(image: Image.Image, start: float, end: float) -> None:
            nonlocal before
            begins = round(start * ticks)
            if begins - before < shortest:
                return
            if not stream.codec_context.is_open:
                stream.width, stream.height = image.size
            frame = to_frame(image)
            frame.pts, frame.time_base = begins, clock
            ends[begins] = round(end * ticks)
            before = begins
            mux(frame)

        yield write
        mux(None)


def _with_palette(image: Image.Image):
    """A frame of at most 256 colours, chosen for this image."""
    image = image.quantize()
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.full((256, 4), 255, np.uint8)  # alpha first
    palette[:len(colours), 1:] = colours
    return _need_av().VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")


def _need_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("clips need PyAV, which is not installed: pip install av") from error
    return av
