"""Clips as streams of frames, read and written one at a time by PyAV (extra "video")."""

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

# ticks a second of what is written: 24, 25, 30 and 60 frames a second divide 90,000; browsers
# show a GIF's frames for 0.02 s at least
CLOCKS = {".mp4": 90_000, ".gif": 50}


@contextlib.contextmanager
def read_frames(source: str | Path) -> Iterator[tuple[Iterator, int | None]]:
    """Opens a clip: yields (iterator of (PIL image, start, end), their number or None).

    Times are in seconds; where a clip's clock jumps back, as in joined recordings, they go on.
    Raises FileNotFoundError, ValueError on what is no clip or damaged, ImportError without PyAV.
    """
    source = Path(source).expanduser()
    if not source.is_file():
        raise FileNotFoundError(f"no clip at {source.absolute()}")
    av = _need_av()
    with _naming(source, av):
        container = av.open(str(source))
    with container:
        # "tty" shows any text as a film, and those named "pipe" are still images
        kind = container.format.name
        if not container.streams.video or kind == "tty" or kind.endswith("_pipe"):
            raise ValueError(f"{source} (holds no moving picture)")
        yield _frames(source, container, av), container.streams.video[0].frames or None


def _frames(source: Path, container, av: ModuleType):
    first, before, after, shift = None, 0, 0, 0
    rate = container.streams.video[0].average_rate or 25
    with _naming(source, av):
        for number, frame in enumerate(container.decode(video=0)):
            first = first or frame
            if frame.pts is None:  # a bare stream says no times
                start, end = number / rate, (number + 1) / rate
            else:
                start = (frame.pts - first.pts) * frame.time_base
                end = start + (frame.duration or 0) * frame.time_base
            if start + shift < before:
                shift = after - start
            start, end = start + shift, end + shift
            before, after = start, max(end, start + 1 / rate)
            # recorded calls change their size on the way, and phones turn their frames
            image = frame.to_image(width=first.width, height=first.height)
            yield image.rotate(frame.rotation, expand=True), float(start), float(end)


@contextlib.contextmanager
def _naming(source: Path, av: ModuleType) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        reason = f"no clip that PyAV reads, or damaged: {error.strerror}"
        raise ValueError(f"{source} ({reason})") from error


@contextlib.contextmanager
def write_clip(path: str | Path, kind: str) -> Iterator[Callable]:
    """Opens a clip of kind ".mp4" or ".gif": yields write(PIL image, start, end).

    Times are in seconds, kept to a tick of CLOCKS; of frames in one tick the first is written. All
    frames have one size, of even sides in an .mp4.
    """
    av = _need_av()
    clock = Fraction(1, CLOCKS[kind])
    options = {"flags": "+frame_duration"}  # or the last frame's would be a guess
    with av.open(str(path), "w", format=kind[1:]) as container:
        if kind == ".gif":
            stream = container.add_stream("gif", options=options)
            stream.pix_fmt = "pal8"
        else:  # B-frames blur the last one's time
            stream = container.add_stream("h264", options={"crf": "20", "bf": "0", **options})
            stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        before = -1

        def write(image: Image.Image, start: float, end: float) -> None:
            nonlocal before
            begins = round(start / clock)
            if begins == before:
                return
            before = begins
            if not stream.codec_context.is_open:
                stream.width, stream.height = image.size
            frame = _with_palette(image) if kind == ".gif" else av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = begins, clock
            frame.duration = max(1, round(end / clock) - begins)
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode(None))


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
