import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dino_lib.backbone import create_backbone
from dino_lib.data.transforms import EvalTransform, as_seen
from dino_lib.look import video
from dino_lib.look.clips import CLOCKS, read_frames
from dino_lib.look.video import BATCH, attention_video, file_words
from dino_lib.measure.attention import cls_attention
from dino_lib.teachers.load import load_teacher


@pytest.fixture(scope="module")
def demo():
    return load_teacher("demo")


def moving(n, size=(90, 51)):
    """A white disc on grey that moves to the right."""
    images = [Image.new("RGB", size, "gray") for _ in range(n)]
    for i, image in enumerate(images):
        ImageDraw.Draw(image).ellipse((10 + 4 * i, 10, 30 + 4 * i, 30), fill="white")
    return images


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """11 frames of 90 x 51 pixels, 25 a second."""
    images, path = moving(11), tmp_path_factory.mktemp("clip") / "clip.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=40)
    return path


def read(path):
    with read_frames(path) as (frames, _):
        return list(frames)


@pytest.mark.parametrize("suffix", CLOCKS)
def test_each_panel_shows_the_attention_of_its_head(demo, clip, tmp_path, suffix):
    frames = read(attention_video(demo, clip, tmp_path / f"seen{suffix}", size=48, panel=120))
    assert [times for _, *times in frames] == [
        pytest.approx([0.04 * i, 0.04 * (i + 1)]) for i in range(11)
    ]
    width, height = 120, 68
    _, x = as_seen(read(clip)[0][0], demo.transform, demo.model.patch_size, 48)
    maps, sheet = cls_attention(demo, x[None])[0], frames[0][0]
    assert sheet.size == (3 * width, 3 * height) and tuple(maps.shape) == (
        8,
        6,
        11,
    )  # the picture and 8 heads
    like = []
    for i in range(1, 9):
        panel = sheet.crop(
            (i % 3 * width, i // 3 * height, (i % 3 + 1) * width, (i // 3 + 1) * height)
        )
        shown = torch.tensor(
            [
                [
                    max(
                        panel.getpixel(
                            (round((c + 0.5) * width / 11), round((r + 0.5) * height / 6))
                        )
                    )
                    for c in range(11)
                ]
                for r in range(2, 6)
            ]
        ).float()  # below the label
        rows = torch.cat([shown.flatten()[None], maps[:, 2:].sqrt().flatten(1)])
        like.append(torch.corrcoef(rows)[0, 1:])  # (8,): the panel beside each head's map
    own = torch.stack(like).diagonal()
    others = (torch.stack(like).sum() - own.sum()) / 56
    # most heads of this teacher are alike, and one has nearly all in a single patch
    assert own.min() > 0.4 and own.mean() > 0.8 and own.mean() > others + 0.2


@pytest.mark.parametrize("head, panels", [(None, 9), ("mean", 2), (0, 2), (7, 2)])
def test_heads_are_all_or_one_or_their_mean(demo, clip, tmp_path, head, panels, monkeypatch):
    shown = []
    sheet = video._sheet
    monkeypatch.setattr(video, "_sheet", lambda *args: shown.append(args[1:]) or sheet(*args))
    attention_video(demo, clip, tmp_path / "seen.gif", head=head, layer=1, size=48, panel=32)
    _, x = as_seen(read(clip)[0][0], demo.transform, demo.model.patch_size, 48)
    maps = cls_attention(demo, x[None], layer=1)[0]
    maps = maps if head is None else maps.mean(0)[None] if head == "mean" else maps[[head]]
    least = 3 * maps.mean((1, 2), keepdim=True)  # a flat map stays dark
    brightest = maps.amax((1, 2), keepdim=True).maximum(least)
    torch.testing.assert_close(shown[0][0], maps / brightest)
    assert len(shown) == 11 and len(shown[0][1]) == panels - 1


def test_the_colours_do_not_flicker(demo, clip, tmp_path, monkeypatch):
    """The head's maximum jumps from frame to frame; the scale is its average of the last second."""
    tops = iter([1.0] + [3.0, 1.0] * 5)
    shown = []
    monkeypatch.setattr(
        video,
        "cls_attention",
        lambda model, x, layer: torch.stack(
            [torch.tensor([[[0.5, next(tops), *[0.0] * 14]]]) for _ in x]
        ),
    )
    monkeypatch.setattr(video, "_sheet", lambda picture, maps, names: shown.append(maps) or picture)
    attention_video(demo, clip, tmp_path / "seen.gif", panel=32)
    scale, keep = 1.0, math.exp(-0.04)
    for i, maps in enumerate(shown):
        scale = keep * scale + (1 - keep) * (3.0 if i % 2 else 1.0)
        assert maps.flatten()[:2].tolist() == pytest.approx(
            [0.5 / scale, min(1, (3 if i % 2 else 1) / scale)], rel=1e-5
        )
    assert all(abs(a[0, 0, 0] - b[0, 0, 0]) < 0.05 for a, b in itertools.pairwise(shown))


def test_a_map_that_is_all_but_even_is_not_bright(demo, clip, tmp_path, monkeypatch):
    even = 1 / 64 + torch.linspace(-1, 1, 64).view(1, 1, 8, 8) / 1000
    monkeypatch.setattr(
        video, "cls_attention", lambda model, x, layer: even.expand(len(x), 1, 8, 8)
    )
    frames = read(attention_video(demo, clip, tmp_path / "seen.gif", panel=64))
    panel = np.asarray(frames[0][0].crop((64, 12, 128, 36)))  # below the label
    assert panel.mean() < 100 and panel.reshape(-1, 3).std(0).max() < 15


@pytest.mark.parametrize("suffix", CLOCKS)
def test_frames_are_let_go(demo, tmp_path, monkeypatch, suffix):
    made, alive = [], []

    class Tracked:
        def __init__(self, path):
            pass

        def __enter__(self):
            return self.frames(), 6 * BATCH

        def __exit__(self, *error):
            pass

        def frames(self):
            for i, image in enumerate(moving(6 * BATCH, (300, 60))):
                frame = image.resize((31, 17))
                made.append(weakref.ref(frame))
                alive.append(sum(ref() is not None for ref in made))
                yield frame, i / 25, (i + 1) / 25

    monkeypatch.setattr(video, "read_frames", Tracked)
    attention_video(demo, "any", tmp_path / f"seen{suffix}", head=0, panel=16)
    assert len(made) == 6 * BATCH and max(alive) <= BATCH + 2


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (51, 7), (7, 401)])
def test_frames_of_any_size(demo, tmp_path, size):
    images = [Image.new("RGB", size, colour) for colour in ("red", "blue")]
    # without a duration old versions of pillow write no times, and PyAV reads one frame
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100)
    for name in ("b.mp4", "b.gif"):
        frames = read(
            attention_video(demo, tmp_path / "a.gif", tmp_path / name, head="mean", panel=64)
        )
        assert len(frames) == 2 and max(frames[0][0].width / 2, frames[0][0].height) == 64


def test_what_cannot_be_is_refused_and_leaves_no_file(demo, clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no clip")
    out = tmp_path / "out"
    out.mkdir()
    for source, name, options, reason in [
        (clip, "a.avi", {}, r"\.mp4 or \.gif"),
        (clip, "a.mp4", {"head": 8}, "0 to 7"),
        (clip, "a.gif", {"head": "best"}, "'mean'"),
        (clip, "a.mp4", {"layer": 4}, "2 such blocks"),
        (clip, "a.mp4", {"size": 5}, "one patch"),
        (clip, "a.mp4", {"size": 0}, "size=0 is less than one patch"),
        (tmp_path / "text.mp4", "a.mp4", {}, r"text\.mp4"),
    ]:
        with pytest.raises(ValueError, match=reason):
            attention_video(demo, source, out / name, **options)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        attention_video(demo, tmp_path / "nowhere.mp4", out / "a.mp4")
    assert not list(out.iterdir())


def test_a_clip_without_frames_is_refused(demo, tmp_path, monkeypatch):
    class Empty:
        def __init__(self, path):
            pass

        def __enter__(self):
            return iter([]), None

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(video, "read_frames", Empty)
    for suffix in CLOCKS:
        with pytest.raises(ValueError, match="holds no frame"):
            attention_video(demo, "clip", tmp_path / f"a{suffix}")


def test_models_that_cannot_look(clip, tmp_path):
    model = create_backbone("resnet10t")
    with pytest.raises(ValueError, match="EvalTransform"):
        attention_video(model, clip, tmp_path / "a.gif")
    model.transform = EvalTransform(64, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(TypeError, match=r"no CLS token.*pooled_similarity"):
        attention_video(model, clip, tmp_path / "a.gif")
    fixed = create_backbone(
        "beitv2_base_patch16_224", depth=1, embed_dim=48, num_heads=2, img_size=64
    )
    fixed.transform = model.transform
    with pytest.raises(ValueError, match=r"img_size=\(48, 80\)"):
        attention_video(fixed, clip, tmp_path / "a.gif")


def encode(path, kind):
    """Five frames at 10 a second, in a file of this kind."""
    av = pytest.importorskip("av")
    try:
        container = av.open(path, "w", format=kind)
        stream = container.add_stream("libx264", rate=10)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"no encoder: {error}")
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    with container:
        for image in moving(5, (64, 48)):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def test_a_bare_stream_without_times_has_those_of_its_rate(tmp_path):
    encode(tmp_path / "clip.h264", "h264")
    starts = [start for _, start, _ in read(tmp_path / "clip.h264")]
    assert len(starts) == 5 and starts[0] == 0
    steps = np.diff(starts)
    assert (steps > 0).all() and np.allclose(steps, steps[0])


def test_joined_recordings_go_on_where_the_clock_jumps_back(demo, tmp_path):
    encode(tmp_path / "part.ts", "mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(2 * (tmp_path / "part.ts").read_bytes())
    starts = [start for _, start, _ in read(joined)]
    assert len(starts) == 10
    np.testing.assert_allclose(starts, np.arange(10) / 10, atol=1e-3)
    attention_video(demo, joined, tmp_path / "out.mp4")
    assert len(list(read(tmp_path / "out.mp4"))) == 10


def test_names_in_any_script_and_alike_have_files_of_their_own():
    names = ["runs/mine", "läufe/ä", "läufe/ö", "модель", "///", "runs-mine", "runs.mine", "実験-2"]
    words = file_words(names)
    assert words == [
        "runs-mine",
        "läufe-ä",
        "läufe-ö",
        "модель",
        "teacher",
        "runs-mine-2",
        "runs-mine-3",
        "実験-2",
    ]
