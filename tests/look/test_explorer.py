import base64
import copy
import html
import io
import json
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image

from dino_lib.backbone import backbone_of, create_backbone
from dino_lib.cli import main
from dino_lib.data.images import UnreadableImage
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import EvalTransform
from dino_lib.look.clips import read_frames, write_clip
from dino_lib.look.explorer import explore, write_explorer
from dino_lib.look.packing import compress, factorise, quantise
from dino_lib.look.video import attention_video, write_videos
from dino_lib.measure.attention import cls_attention, full_attention, pooled_similarity
from dino_lib.teachers.load import load_teacher


@pytest.fixture(scope="module")
def images():
    return [image for image, _ in Shapes(3, seed=1)]


@pytest.fixture(scope="module")
def demo():
    return load_teacher("demo")


@pytest.fixture(scope="module")
def page(demo, images, tmp_path_factory):
    return explore({"demo": demo}, images, path=tmp_path_factory.mktemp("page") / "page.html")


def with_transform(name, size, **options):
    torch.manual_seed(0)
    model = create_backbone(name, **options)
    model.transform = EvalTransform(size, (0.5,) * 3, (0.5,) * 3)
    return model


def data_of(page):
    return json.loads(
        re.search(r'id="data">(.*?)</script>', page.path.read_text("utf-8"), re.DOTALL)[1]
    )


def array(text, dtype):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)


def maps_of(teacher, i):
    """(layers, heads, h, w) and the largest step, as the page decodes them."""
    item = teacher["images"][i]
    values = array(item["maps"], torch.uint8).float().view(len(item["step"]), -1)
    maps = torch.tensor(item["low"])[:, None] + torch.tensor(item["step"])[:, None] * values
    return maps.view(teacher["layers"], teacher["heads"], *item["grid"]), max(item["step"])


def patch_rows(item):
    """(heads, patches, h, w) as the page decodes them."""
    (h, w), rank = item["grid"], item["rank"]
    queries = array(item["queries"], torch.int8).float().view(-1, h * w, rank)
    keys = array(item["keys"], torch.int8).float().view(-1, item["tokens"], rank)
    scale = torch.tensor(item["scale"]).view(-1, 1, rank)
    return (
        ((queries * scale) @ keys.transpose(1, 2)).softmax(-1)[..., -h * w :].unflatten(-1, (h, w))
    )


def test_the_page_holds_the_cls_attention_of_every_layer(page, demo, images):
    [teacher] = data_of(page)["teachers"]
    assert (teacher["name"], teacher["map"], teacher["layers"], teacher["heads"]) == (
        "demo",
        "CLS attention",
        2,
        8,
    )
    for i, image in enumerate(images):
        maps, step = maps_of(teacher, i)
        for layer in range(2):
            expected = cls_attention(demo, demo.transform(image)[None], layer=layer)[0]
            torch.testing.assert_close(maps[layer], expected, atol=0.51 * step, rtol=1e-4)
            torch.testing.assert_close(page.seen["demo"][i][1][layer], expected)


def test_the_page_rebuilds_the_attention_of_every_patch(page, demo, images):
    item = data_of(page)["teachers"][0]["images"][1]
    rows, x = patch_rows(item), demo.transform(images[1])[None]
    expected = full_attention(demo, x)[0, :, 1:, 1:].unflatten(-1, (8, 8))
    off = (rows - expected).abs().sum((-1, -2)) / 2
    assert off.mean() < 0.006 and off.max() < 0.05
    assert expected.std() > 10 * (rows - expected).std()
    assert item["off"] == pytest.approx(off.mean().item(), rel=0.1)


def test_features_keep_their_cosines_across_images(page, demo, images):
    [teacher] = data_of(page)["teachers"]
    found = torch.cat(
        [array(item["features"], torch.int8).view(64, -1) for item in teacher["images"]]
    )
    found = torch.nn.functional.normalize(found * torch.tensor(teacher["features"]), dim=-1)
    x = torch.stack([demo.transform(image) for image in images])
    expected = torch.nn.functional.normalize(
        backbone_of(demo).patch_tokens(x).flatten(0, 2), dim=-1
    )
    torch.testing.assert_close(found @ found.T, expected @ expected.T, atol=0.03, rtol=0)


def test_quantisation_is_off_by_half_a_step_at_most():
    torch.manual_seed(0)
    maps = torch.cat([torch.rand(2, 50), torch.rand(1, 50) - 0.5, torch.zeros(1, 50)])
    values, low, step = quantise(maps)
    assert ((low + step * values - maps).abs() <= 0.501 * step).all()
    assert (
        low.flatten().tolist()[:2] == [0, 0]
        and low[2] < 0
        and values[:3].amax(-1).tolist() == [255] * 3
    )


@pytest.mark.parametrize("room, rank", [(10**6, 6), (2 * 5 * (40 + 41), 5), (1, 4)])
def test_factors_stay_within_their_room_and_tell_how_far_they_are_off(room, rank):
    torch.manual_seed(0)
    attention = (torch.randn(2, 41, 6) @ torch.randn(2, 6, 41) / 2).softmax(-1)
    state = torch.get_rng_state()
    queries, keys, scale, off = factorise(attention, 40, room)
    assert torch.equal(torch.get_rng_state(), state)
    assert (queries.shape, keys.shape, scale.shape) == ((2, 40, rank), (2, 41, rank), (2, rank))
    rows = ((queries * scale[:, None]) @ keys.float().transpose(1, 2)).softmax(-1)
    assert off == pytest.approx((rows - attention[:, 1:]).abs().sum(-1).mean().item() / 2, rel=1e-3)
    assert (off < 0.02) == (rank == 6)


def test_fewer_dimensions_than_asked_for_are_no_error():
    values, scale, _ = compress(torch.eye(3)[[0, 0, 1]])
    x = values * scale
    torch.testing.assert_close(
        x @ x.T, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), atol=1e-2, rtol=0
    )


def test_the_page_is_small_and_asks_for_nothing(page):
    text = page.path.read_text("utf-8")
    assert text == page.html and len(text) < 400_000
    assert not re.search(r"https?://|<link|@import|\bsrc=|fetch\(|{{", text)
    assert "default-src 'none'" in text


def test_a_notebook_gets_the_whole_page_in_a_frame(page):
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)".*</iframe>', page._repr_html_(), re.DOTALL)
    assert html.unescape(frame[1]) == page.html


def test_two_vits_of_28_x_28_patches_stay_below_10_mb(tmp_path, images):
    model = with_transform(
        "vit_tiny_patch16_224", 224, patch_size=8, depth=2, num_heads=6, embed_dim=96
    )
    page = explore({"a": model, "b": model}, [images[0]] * 2, path=tmp_path / "page.html")
    # 2 images take the room of 12; this small network lacks the 10 further layers of 12 images
    assert (
        page.path.stat().st_size
        + 2 * (12 * 12 - 2 * 2) * 6 * 784 * 4 / 3
        + 2 * 10 * 784 * 48 * 4 / 3
        < 10e6
    )
    assert data_of(page)["teachers"][0]["images"][0]["grid"] == [28, 28]
    assert len(data_of(page)["pictures"]) == 1


@pytest.mark.parametrize(
    "sides, grid",
    [  # (width, height) in pixels, (rows, columns) of patches
        ((3, 5), [10, 6]),
        ((2000, 20), [1, 80]),
        ((20, 2000), [80, 1]),
        ((12_000, 1_500), [3, 23]),
        ((60, 60), [8, 8]),
        ((1, 1), [8, 8]),
    ],
)
def test_with_a_size_the_whole_image_is_seen(demo, tmp_path, sides, grid):
    page = explore(demo, Image.new("RGB", sides, "teal"), path=tmp_path / "a.html", size=48)
    assert data_of(page)["teachers"][0]["images"][0]["grid"] == grid


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (3, 5)),
        Image.new("CMYK", (40, 30)),
        Image.new("L", (9, 900)),
        Image.new("RGBA", (4000, 30)),
        Image.new("RGB", (12_000, 1_500)),
    ],
)
def test_any_mode_and_size_is_seen_through_the_transform(demo, tmp_path, image):
    [entry] = data_of(explore(demo, [image], path=tmp_path / "a.html"))["teachers"]
    assert entry["images"][0]["grid"] == [8, 8]


@pytest.mark.parametrize(
    "name, options, kind, patches",
    [
        ("resnet18", {}, "pooled similarity", False),
        (
            "vit_tiny_patch16_224",
            {"depth": 1, "class_token": False, "global_pool": "avg"},
            "pooled similarity",
            True,
        ),
        ("cait_xxs24_224", {"depth": 1}, "CLS attention", False),
    ],
)
def test_models_without_cls_or_patch_attention(tmp_path, images, name, options, kind, patches):
    model = with_transform(name, 224, **options)
    page = explore(model, images[:1], path=tmp_path / "a.html")
    [entry] = data_of(page)["teachers"]
    assert entry["map"] == kind and ("queries" in entry["images"][0]) == patches
    x = model.transform(images[0])[None]
    maps, step = maps_of(entry, 0)
    expected = (
        pooled_similarity(model, x)[0] if kind.startswith("pooled") else cls_attention(model, x)[0]
    )
    torch.testing.assert_close(maps[-1], expected, atol=0.51 * step, rtol=1e-4)


def test_a_teacher_without_transform_takes_that_of_another(tmp_path, demo, images):
    torch.manual_seed(0)
    bare = create_backbone("vit_tiny_patch16_224", img_size=48, patch_size=6, depth=1)
    data = data_of(explore({"untrained": bare, "trained": demo}, images, path=tmp_path / "a.html"))
    assert [t["name"] for t in data["teachers"]] == ["untrained", "trained"] and len(
        data["pictures"]
    ) == 3
    with pytest.raises(ValueError, match="EvalTransform"):
        explore(bare, images, path=tmp_path / "b.html")


def test_stages_of_one_run_are_teachers(tmp_path, demo, images):
    stages = {}
    for step in (0, 100, 620):
        stages[f"step {step}"] = stage = copy.deepcopy(demo)
        generator = torch.Generator().manual_seed(0)
        for p in backbone_of(stage).parameters():
            p.mul_(step / 620).add_(
                (1 - step / 620) * 0.1 * torch.randn(p.shape, generator=generator)
            )
    data = data_of(explore(stages, images, path=tmp_path / "a.html"))
    assert [t["name"] for t in data["teachers"]] == list(stages) and len(data["pictures"]) == 3
    assert len({t["images"][0]["maps"] for t in data["teachers"]}) == 3


def test_a_similarity_is_computed_only_where_it_is_shown(tmp_path, demo, images, monkeypatch):
    monkeypatch.setattr("dino_lib.look.explorer.pooled_similarity", None)
    assert explore(demo, images[:1], path=tmp_path / "a.html").seen


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_on_a_screen_unless_it_is_not_wanted(
    tmp_path, demo, images, monkeypatch, progress
):
    monkeypatch.setattr("sys.stderr", screen := Screen())
    explore(demo, images, path=tmp_path / "a.html", progress=progress)
    images[0].save(tmp_path / "clip.gif", save_all=True, append_images=images[1:])
    attention_video(demo, tmp_path / "clip.gif", tmp_path / "seen.gif", panel=32, progress=progress)
    assert ("looks" in screen.getvalue(), "attention" in screen.getvalue()) == (progress, progress)
    assert progress or not screen.getvalue()


def test_no_name_ends_the_script(tmp_path, demo, images):
    page = explore({"</script><b>": demo}, images[:1], path=tmp_path / "a.html")
    assert data_of(page)["teachers"][0]["name"] == "</script><b>"
    assert "</script><b>" not in page.html


def test_broken_images_are_named(tmp_path, demo, images, capsys):
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(UnreadableImage, match=r"text\.jpg"):
        explore(demo, text, path=tmp_path / "a.html")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        explore(demo, tmp_path / "nowhere", path=tmp_path / "a.html")
    for wrong in ([], [object()]):
        with pytest.raises((ValueError, TypeError), match=r"empty|PIL image"):
            explore(demo, wrong, path=tmp_path / "a.html")
    with pytest.raises(ValueError, match="one patch"):
        explore(demo, images, path=tmp_path / "a.html", size=5)
    assert not (tmp_path / "a.html").exists()
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    page = explore(demo, tmp_path, path=tmp_path / "a.html")
    assert (
        data_of(page)["names"] == ["0.png", "1.png", "2.png"]
        and "text.jpg" in capsys.readouterr().out
    )
    assert data_of(explore(demo, tmp_path / "2.png", path=tmp_path / "a.html", limit=1))[
        "names"
    ] == ["2.png"]


def test_of_a_large_folder_a_few_are_taken_evenly(tmp_path, demo, images):
    for i in range(9):
        images[0].save(tmp_path / f"{i}.png")
    names = data_of(explore(demo, tmp_path, path=tmp_path / "a.html", limit=3))["names"]
    assert names == ["0.png", "4.png", "8.png"]


# --- folders of files -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, images):
    (tmp_path / "in").mkdir()
    for i, shape in enumerate([(48, 48), (90, 30)]):
        images[i].resize(shape).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


@pytest.mark.parametrize("size", [None, 48])
def test_several_images_make_a_page_and_a_sheet(folder, tmp_path, demo, size):
    paths = write_explorer(folder, {"demo": demo}, tmp_path / "out", size=size)
    assert paths == [tmp_path / "out" / name for name in ("explorer.html", "heads.png")]
    width, height = Image.open(paths[1]).size
    assert height > 2 * width  # 9 rows, 2 columns


def test_one_image_is_drawn_large_for_each_teacher(folder, tmp_path, demo):
    image = folder / "1.png"
    _, large = write_explorer(image, {"demo": demo}, tmp_path / "a", size=48)
    assert large.name == "heads.png" and Image.open(large).width > 1000
    paths = write_explorer(image, {"demo": demo, "runs/mine": demo}, tmp_path / "b", size=48)
    assert [path.name for path in paths] == [
        "explorer.html",
        "heads-demo.png",
        "heads-runs-mine.png",
    ]
    assert all(path.exists() for path in paths)


def test_a_network_without_heads_gets_a_sheet_of_its_own(folder, tmp_path, demo):
    cnn = with_transform("resnet10t", 64)
    paths = write_explorer(folder / "0.png", {"demo": demo, "cnn": cnn}, tmp_path / "out")
    assert [path.name for path in paths] == ["explorer.html", "heads-demo.png", "heads-cnn.png"]


def test_a_network_without_patches_is_refused_before_a_page_is_written(tmp_path, demo, images):
    def refuse(x):
        raise TypeError("Mixer has no grid of patches")

    bare = with_transform("vit_tiny_patch16_224", 48, img_size=48, depth=1)
    bare.patch_tokens = refuse
    for teachers in (bare, {"demo": demo, "bare": bare}):
        with pytest.raises(TypeError, match="Mixer has no grid of patches"):
            explore(teachers, images[:1], path=tmp_path / "b.html")
    assert not (tmp_path / "b.html").exists()


def test_grey_networks_go_through_everything(tmp_path, folder):
    grey = create_backbone("vit_tiny_patch16_224", img_size=48, patch_size=8, depth=1, in_chans=1)
    grey.transform = EvalTransform(48, (0.5,), (0.5,))
    for images in (folder, folder / "0.png"):
        for path in write_explorer(images, {"grey": grey}, tmp_path / "out"):
            assert path.stat().st_size > 1000
    with write_clip(tmp_path / "clip.gif", ".gif") as write:
        write(Image.new("RGB", (20, 20), "red"), 0, 0.1)
    [path] = write_videos(tmp_path / "clip.gif", {"grey": grey}, tmp_path / "out")
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("what, heads, size", [("", 1, 24), ("1.png", 1, 8), ("1.png", 13, 24)])
def test_any_number_of_heads_and_any_grid(tmp_path, folder, what, heads, size):
    vit = with_transform(
        "vit_tiny_patch16_224",
        24,
        img_size=(16, 8),
        patch_size=8,
        depth=1,
        num_heads=heads,
        embed_dim=4 * heads,
    )
    _, figure = write_explorer(folder / what, {"vit": vit}, tmp_path / "out", size=size)
    assert figure.stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")
def test_names_that_are_no_utf8_are_shown_as_far_as_they_can_be(tmp_path, demo, images, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = folder / os.fsdecode(b"caf\xe9.png")
    images[0].save(odd)
    (folder / os.fsdecode(b"bad\xff.png")).write_text("no image")
    for source in (folder, odd, [odd]):
        page = explore(demo, source, path=tmp_path / "a.html")
        assert data_of(page)["names"] == ["caf\\udce9.png"]
    assert "bad" in capsys.readouterr().out.encode("utf-8").decode()
    assert page._repr_html_().encode("utf-8")


def test_a_tilde_is_the_home_folder(tmp_path, demo, images, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    images[0].save(tmp_path / "a.png")
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:2])
    assert explore(demo, "~/a.png", path="~/a.html").path == tmp_path / "a.html"
    assert attention_video(demo, "~/a.gif", "~/b.gif", panel=32) == tmp_path / "b.gif"
    assert write_videos("~/a.gif", {"demo": demo}, "~/out", head=0) == [
        tmp_path / "out" / "attention-demo.gif"
    ]
    write_explorer("~/a.png", {"demo": demo}, "~/out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "attention-demo.gif",
        "explorer.html",
        "heads.png",
    ]


@pytest.mark.parametrize("kind, head, panels", [("gif", 2, 2), ("mp4", None, 9)])
def test_a_clip_becomes_a_video_of_each_teacher(tmp_path, demo, images, kind, head, panels):
    with write_clip(tmp_path / f"clip.{kind}", f".{kind}") as write:
        for i, image in enumerate(images):
            write(image, i / 25, (i + 1) / 25)
    paths = write_videos(
        tmp_path / f"clip.{kind}", {"demo": demo, "runs/mine": demo}, tmp_path / "out", head=head
    )
    assert [path.name for path in paths] == [
        f"attention-demo.{kind}",
        f"attention-runs-mine.{kind}",
    ]
    with read_frames(paths[0]) as (frames, count):
        frames = list(frames)
    assert count == len(frames) == 3
    width, height = frames[0][0].size
    assert width * height == panels * 320 * 320


@pytest.mark.parametrize(
    "words",
    [
        ["explore", "{nowhere}"],
        ["explore", "{text}"],
        ["explore", "{image}", "--teacher", "nobody"],
        ["explore"],
        ["explore", "{image}", "--size", "big"],
        ["explore", "{image}", "--size", "2"],
        ["explore", "{image}", "--teacher", "{pickle}"],
        ["video"],
        ["video", "{nowhere}"],
        ["video", "{clip}"],
        ["video", "{empty}"],
        ["video", "{moving}", "--head", "9"],
        ["video", "{moving}", "--head", "best"],
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path, images, capsys, words):
    (tmp_path / "text.jpg").write_text("no image")
    images[0].save(tmp_path / "image.png")
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").touch()
    torch.save({"teacher": Fraction(1, 3)}, tmp_path / "class.pth")
    images[0].save(tmp_path / "moving.gif", save_all=True, append_images=images[1:])
    names = {
        "nowhere": tmp_path / "nowhere",
        "text": tmp_path / "text.jpg",
        "image": tmp_path / "image.png",
        "clip": tmp_path / "text.mp4",
        "empty": tmp_path / "empty.mp4",
        "pickle": tmp_path / "class.pth",
        "moving": tmp_path / "moving.gif",
    }
    with pytest.raises(SystemExit) as end:
        main([*(word.format(**names) for word in words), "--out", str(tmp_path / "out")])
    out, error = capsys.readouterr()
    file = next((names[word[1:-1]] for word in reversed(words) if word.startswith("{")), "")
    assert Path(file).name in error or len(words) == 1 or "--" in words[-2]
    assert end.value.code == 2 and error.count("\n") == 1 and not out


def test_a_folder_that_is_not_there_is_named_before_the_work(demo, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*gone to write page\.html to"):
        explore(demo, tmp_path / "no picture.png", path=tmp_path / "gone" / "page.html")
