"""Clips as streams of frames: read and written one at a time, each with its own time.

PyAV, the extra "video", reads what is no image and writes .mp4; animated images need Pillow alone.
"""

import contextlib
from fractions import Fraction
from pathlib import Path

from PIL import GifImagePlugin, Image, ImageSequence

from dino_lib.data.folders import NO_DECODER
from dino_lib.data.images import to_channels

MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # whose frames follow in time; those of a TIFF or MPO are pages and previews
CLOCK = 90_000  # ticks a second of a written .mp4: 24, 25, 30 and 60 frames a second are whole numbers of them


def is_clip(path):
    """Whether a file is to be seen as a clip: an animated image, or what neither is an image nor is named like one."""
    path = Path(path).expanduser()
    try:
        with Image.open(path) as image:
            return image.format in MOVING and image.is_animated
    except Exception:  # a decoder may stumble with any exception over what it does not know
        return path.is_file() and Image.registered_extensions().get(path.suffix.lower()) in (None, *NO_DECODER)


@contextlib.contextmanager
def read_frames(source):
    """Opens a clip: yields (iterator of (PIL image, start, end), in seconds; their number, or None)."""
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
        raise ValueError(f"{source} (neither a clip that PyAV reads nor an image: {error.strerror})") from error
    with container:
        if not container.streams.video or container.format.name == "tty":  # which shows any text as a film
            raise ValueError(f"{source} (holds no moving picture)")
        yield _clip_frames(source, container.decode(video=0), av), container.streams.video[0].frames or None


def _image_frames(image):
    start = 0.0
    for frame in ImageSequence.Iterator(image):
        end = start + (frame.info.get("duration") or 100) / 1000  # 0 ms is what browsers show for 100
        yield to_channels(frame), start, end
        start = end


def _clip_frames(source, frames, av):
    first = time = None
    try:
        for frame in frames:
            time = frame.pts * frame.time_base
            first = first or (time, frame.width, frame.height)
            image = frame.to_image(width=first[1], height=first[2])  # recorded calls change their size on the way
            start, end = time - first[0], time - first[0] + (frame.duration or 0) * frame.time_base
            yield image.rotate(frame.rotation, expand=True), float(start), float(end)  # phones turn their frames
    except av.FFmpegError as error:
        when = "at its start" if first is None else f"{float(time - first[0]):.2f} s after its start"
        raise ValueError(f"{source} (damaged {when}: {error.strerror})") from error


def _need_av():
    try:
        import av
    except ImportError as error:
        raise ImportError("clips need PyAV, which is not installed: pip install av") from error
    return av


@contextlib.contextmanager
def write_mp4(path):
    """Yields write(PIL image of even sides, start, end)."""
    av = _need_av()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", options={"crf": "20", "bf": "0"})  # B-frames blur the last one's time
        stream.codec_context.time_base, stream.pix_fmt, lasts = Fraction(1, CLOCK), "yuv420p", {}

        def mux(frame):
            for packet in stream.encode(frame):
                packet.duration = lasts.pop(packet.pts)  # without it the last frame would be a guess
                container.mux(packet)

        def write(image, start, end):
            frame = av.VideoFrame.from_image(image)
            if not stream.codec_context.is_open:
                stream.width, stream.height = image.size
            frame.pts, frame.time_base = round(start * CLOCK), stream.codec_context.time_base
            lasts[frame.pts] = round((end - start) * CLOCK)
            mux(frame)

        yield write
        mux(None)


@contextlib.contextmanager
def write_gif(path):
    """Yields write(PIL image, start, end). Pillow's own save would hold all frames until the last is there."""
    with open(path, "wb") as file:
        held, since, until = None, 0, 0  # in 1/100 s: a frame is written when the next begins

        def put(now):
            if not file.tell():
                file.writelines(GifImagePlugin.getheader(held, info={"loop": 0})[0])
            file.writelines(GifImagePlugin.getdata(held, duration=10 * (now - since), include_color_table=True))

        def write(image, start, end):
            nonlocal held, since, until
            now, until = round(100 * start), round(100 * end)
            if held and now - since < 2:  # browsers would show it for 0.1 s
                return
            if held:
                put(now)
            held, since = image.quantize(), now

        yield write
        put(max(until, since + 2))
        file.write(b";")


WRITERS = {".mp4": write_mp4, ".gif": write_gif}
