"""Teachers handed on: each layout read back by other code gives the same features and attention."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from dino_lib.backbone import create_backbone
from dino_lib.cli import main
from dino_lib.measure.attention import cls_attention, every_layer, full_attention
from dino_lib.run.build import build_backbone
from dino_lib.run.presets import PRESETS
from dino_lib.run.teacher_file import save_teacher
from dino_lib.teachers.card import model_card
from dino_lib.teachers.export import LAYOUTS, _check_vit_model, export
from dino_lib.teachers.graph import OLDEST, Looks, check_plain
from dino_lib.teachers.load import find_teacher, load_teacher

TINY = {"img_size": 24, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_heads": 2,
        "mlp_ratio": 2.0}  # fmt: skip
VITS = {  # what sets ViTs apart
    "plain": {},
    "stem, registers, q and k normalised": {
        "conv_stem": True,
        "reg_tokens": 2,
        "qk_norm": True,
        "no_embed_class": True,
    },
    "layer scale, norm before": {"init_values": 0.5, "pre_norm": True, "reg_tokens": 3},
    "grey, oblong": {"in_chans": 1, "img_size": (24, 40), "patch_size": (6, 4)},
    "norm after the pool": {"fc_norm": True, "qkv_bias": False},
}


def moved(backbone):
    """In eval mode, with weights that are far from those it starts with: biases, norms, places."""
    generator = torch.Generator().manual_seed(1)
    for value in [*backbone.parameters(), *backbone.buffers()]:
        if value.is_floating_point():
            value.data += 0.2 * torch.rand(value.shape, generator=generator)
    return backbone.requires_grad_(False).eval()


def vit(**options):
    torch.manual_seed(0)
    return moved(create_backbone("vit_tiny_patch16_224", **{**TINY, **options}))


def made_run(folder, *, stem=False, dataset="shapes", options=TINY, **settings):
    """The folder of a run's teacher with these options of its backbone."""
    config = dataclasses.replace(
        PRESETS["smoke"],
        conv_stem=stem,
        dataset=dataset,
        backbone_options=dict(options),
        **settings,
    )
    folder.mkdir()
    backbone = moved(build_backbone(config))
    save_teacher(folder / "teacher.safetensors", backbone, config, step=8, images_seen=64)
    return folder


@pytest.fixture
def run(tmp_path):
    """`made_run` in a folder of this test."""
    return lambda **options: made_run(tmp_path / "run", **options)


def images(backbone, rows, columns, n=2, channels=3):
    high, wide = backbone.patch_size
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(n, channels, rows * high, columns * wide, generator=generator)


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=atol, rtol=0)


# --- the graph, as PyTorch runs it ----------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (4, 10), (2, 3), (9, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", VITS)
def test_the_graph_sees_what_the_model_sees(kind, grid):
    backbone = vit(**VITS[kind])
    x = images(backbone, *grid, channels=VITS[kind].get("in_chans", 3))
    seen = Looks(check_plain(backbone, "it"), ()).sight(x)
    close(seen["feature"], backbone(x))
    close(seen["patches"], backbone.patch_tokens(x))
    close(seen["attention"], cls_attention(backbone, x))
    close(seen["layers"], every_layer(backbone, x).transpose(0, 1))
    close(seen["matrix"], full_attention(backbone, x))


@pytest.mark.parametrize(
    "name, options, word",
    [
        ("resnet18", {}, "ResNet"),
        ("xcit_nano_12_p16_224", {"depth": 1}, "Xcit"),
        ("vit_tiny_patch16_224", {**TINY, "class_token": False, "global_pool": "avg"}, "CLS"),
        ("vit_tiny_patch16_224", {**TINY, "pos_embed": "none"}, "position"),
        ("vit_tiny_r_s16_p8_224", {"depth": 1}, "HybridEmbed"),
    ],
)
def test_other_networks_are_no_graph(name, options, word):
    with pytest.raises(TypeError, match=rf"ONNX.*{word}.*timm"):
        check_plain(create_backbone(name, **options), "ONNX")


# --- onnx -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the ONNX file in onnxruntime, its teacher, its folder); about ten seconds."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if torch.__version__ < OLDEST:
        pytest.skip(f"torch before {OLDEST} can't write ONNX")
    folder = tmp_path_factory.mktemp("onnx")
    options = {**TINY, "depth": 1, "reg_tokens": 2, "qk_norm": True}
    made_run(folder / "run", stem=True, options=options)
    export(folder / "run", "onnx", folder / "out")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "out" / "model.onnx", options)
    return session, load_teacher(folder / "run"), folder / "out"


@pytest.mark.parametrize("n, grid", [(1, (4, 4)), (5, (8, 8)), (2, (3, 13)), (1, (1, 1))])
def test_onnx_gives_feature_and_heads_at_any_batch_and_size(exported, n, grid):
    session, teacher, _ = exported
    x = images(teacher.model, *grid, n=n)
    feature, attention = session.run(["feature", "attention"], {"images": x.numpy()})
    close(feature, teacher.model(x))
    close(attention, cls_attention(teacher, x))


def test_onnx_is_one_file_that_knows_how_to_look(exported):
    session, teacher, out = exported
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.onnx"]
    told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert told["size"] == teacher.transform.size
    assert tuple(told["mean"]) == teacher.transform.mean
    assert tuple(told["std"]) == teacher.transform.std
    [given] = session.get_inputs()
    assert given.shape == ["batch", 3, "6*rows", "6*columns"]


def test_an_older_torch_is_told_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_lib.teachers.graph.OLDEST", "99.1")
    with pytest.raises(ImportError, match=r"torch \d.*takes torch 99\.1, pip install"):
        export("demo", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_packages_a_word_and_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dino_lib.teachers.graph.OLDEST", "1")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit) as end:
        main(["export", "demo", "--format", "onnx", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "pip install onnx" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- timm, in a process without dino_lib ----------------------------------------------------------

newer_timm = pytest.mark.skipif(
    "data_config" not in inspect.signature(save_for_hf).parameters,
    reason="timm before 1.0.31 can't write its layout",
)

ELSEWHERE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
torch.set_grad_enabled(False)
for folder, code, given, found in json.loads(sys.argv[1]):
    sys.path[0] = folder
    images = load_file(given)["images"]
    exec(code.replace("PATH/OF/THIS/FOLDER", folder))
    save_file({"feature": feature.contiguous()}, found)
assert "dino_lib" not in sys.modules
"""
NETWORKS = {  # of a run -> sizes of its images
    "stem": ({"stem": True, "options": {**TINY, "reg_tokens": 2, "qk_norm": True}}, [24, 36]),
    "plain": ({"options": {**TINY, "class_token": False, "global_pool": "avg"}}, [24, 36]),
    "resnet": ({"options": {}, "backbone": "resnet10t"}, [40]),
}


@newer_timm
def test_timm_alone_reads_what_was_written_for_it(tmp_path):
    """By the code in the card, in one new process for all, since an import takes seconds."""
    jobs, expected = [], []
    for name, (options, sizes) in NETWORKS.items():
        folder, out = made_run(tmp_path / name, **options), tmp_path / f"{name}-out"
        files = [path.name for path in export(folder, "timm", out)]
        stem = ["stem.py"] if name == "stem" else []
        assert files == ["README.md", "config.json", "model.safetensors", *stem]
        code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
        for size in sizes:
            x = torch.randn(2, 3, size, size + 12, generator=torch.Generator().manual_seed(0))
            save_file({"images": x}, tmp_path / f"x-{name}-{size}")
            places = [str(tmp_path / f"{kind}-{name}-{size}") for kind in "xy"]
            jobs.append([str(out), code, *places])
            expected.append(load_teacher(folder).model(x))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [sys.executable, "-c", ELSEWHERE, json.dumps(jobs)]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (*_, found), feature in zip(jobs, expected, strict=True):
        close(load_file(found)["feature"], feature)


@newer_timm
def test_timms_config_tells_how_to_look_and_nothing_of_timms_own_weights(run, tmp_path):
    export(run(), "timm", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert told["mean"] == [0.485, 0.456, 0.406] and told["input_size"] == [3, 48, 48]
    assert "apache" not in json.dumps(told) and "url" not in told


@newer_timm
def test_what_a_config_cannot_describe_is_named(run, tmp_path, monkeypatch):
    folder = run()
    built = load_teacher(folder)
    built.model.model._model_args["mlp_layer"] = nn.Linear
    monkeypatch.setattr("dino_lib.teachers.export.load_teacher", lambda name: built)
    with pytest.raises(TypeError, match=r"can't describe.*mlp_layer"):
        export(folder, "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_older_timm_is_told_and_leaves_no_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr("dino_lib.teachers.export.save_for_hf", lambda model, folder: None)
    with pytest.raises(ImportError, match=r"timm \d.*it takes timm 1\.0\.31"):
        export(run(), "timm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- hugging face ---------------------------------------------------------------------------------


def vit_model(state, config, x):
    """A plain rendering of what Hugging Face's ViTModel computes: (last hidden state, the last
    layer's attention).
    """

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        shape, eps = (x.shape[-1],), config["layer_norm_eps"]
        return F.layer_norm(x, shape, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    patches = F.conv2d(
        x,
        state["embeddings.patch_embeddings.projection.weight"],
        state["embeddings.patch_embeddings.projection.bias"],
        stride=config["patch_size"],
    )
    cls = state["embeddings.cls_token"].expand(len(x), -1, -1)
    x = torch.cat([cls, patches.flatten(2).transpose(1, 2)], 1)
    x = x + state["embeddings.position_embeddings"]
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        y = norm(x, f"{layer}.layernorm_before")
        q, k, v = (
            linear(y, f"{layer}.attention.attention.{part}").unflatten(2, (heads, -1))
            for part in ("query", "key", "value")
        )
        shares = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        shares = shares.softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", shares, v).flatten(2)
        x = x + linear(y, f"{layer}.attention.output.dense")
        y = F.gelu(linear(norm(x, f"{layer}.layernorm_after"), f"{layer}.intermediate.dense"))
        x = x + linear(y, f"{layer}.output.dense")
    return norm(x, "layernorm"), shares


@pytest.fixture(params=[{}, {"no_embed_class": True, "qkv_bias": False}], ids=["usual", "odd"])
def handed_on(request, run, tmp_path):
    """(the run's teacher, images, the folder for Hugging Face)."""
    folder = run(options={**TINY, **request.param})
    export(folder, "huggingface", tmp_path / "out")
    teacher = load_teacher(folder)
    return teacher, images(teacher.model, 4, 4), tmp_path / "out"


def test_a_vit_model_made_of_the_folder_sees_the_same(handed_on):
    teacher, x, out = handed_on
    state = load_file(out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    hidden, shares = vit_model(state, config, x)
    close(hidden[:, 0], teacher.model(x))
    close(hidden[:, 1:].unflatten(1, (4, 4)), teacher.model.patch_tokens(x))
    close(shares, full_attention(teacher, x))


def test_its_names_and_shapes_are_those_of_vit_model(run, tmp_path):
    export(run(), "huggingface", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    d, hidden = 16, 32
    expected = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.position_embeddings": (1, 17, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, 6, 6),
        "embeddings.patch_embeddings.projection.bias": (d,),
        "layernorm.weight": (d,),
        "layernorm.bias": (d,),
    }
    linears = {
        "attention.attention.query": (d, d),
        "attention.attention.key": (d, d),
        "attention.attention.value": (d, d),
        "attention.output.dense": (d, d),
        "intermediate.dense": (hidden, d),
        "output.dense": (d, hidden),
    }
    for i in range(2):
        for name, shape in linears.items():
            expected[f"encoder.layer.{i}.{name}.weight"] = shape
            expected[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("before", "after"):
            for kind in ("weight", "bias"):
                expected[f"encoder.layer.{i}.layernorm_{name}.{kind}"] = (d,)
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_load_teacher_reads_what_was_handed_on(handed_on):
    teacher, x, out = handed_on
    again = load_teacher(out)
    close(again.model(x), teacher.model(x), atol=1e-6)
    assert again.transform.mean == teacher.transform.mean


def test_transformers_reads_it(handed_on):
    """Where the package is; the course needs it nowhere else."""
    transformers = pytest.importorskip("transformers")
    teacher, x, out = handed_on
    model, told = transformers.ViTModel.from_pretrained(
        out, add_pooling_layer=False, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values())
    with torch.no_grad():
        seen = model.eval()(x, output_attentions=True)
    close(seen.last_hidden_state[:, 0], teacher.model(x))
    close(seen.attentions[-1], full_attention(teacher, x))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"reg_tokens": 2}, "registers"),
        ({"qk_norm": True}, "normalised queries and keys"),
        ({"init_values": 0.1}, "layer scale"),
        ({"pre_norm": True}, "a norm before"),
        ({"fc_norm": True}, "another norm"),
        ({"class_token": False, "global_pool": "avg"}, "CLS"),
    ],
)
def test_what_vit_model_has_no_place_for_is_named(run, tmp_path, options, words):
    folder = run(options={**TINY, **options})
    with pytest.raises(TypeError, match=rf"{words}.*timm"):
        export(folder, "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_run_cannot_have_is_named_too():
    """Of weights from elsewhere: oblong images, another MLP."""
    oblong = vit(img_size=(24, 36))
    with pytest.raises(TypeError, match="not square"):
        _check_vit_model(oblong.model, oblong)
    backbone = vit()
    backbone.model.blocks[0].mlp.act = nn.GELU("tanh")
    with pytest.raises(TypeError, match="GELU"):
        _check_vit_model(backbone.model, backbone)


def test_a_stem_is_named_on_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", "demo", "--format", "huggingface", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert "convolutional stem" in error and "--format timm" in error


# --- folders and cards ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tensorflow", "ONNX"])
def test_formats_are_named(tmp_path, layout):
    with pytest.raises(ValueError, match=rf"{layout}.*onnx, timm, huggingface"):
        export("demo", layout, tmp_path / "out")


@pytest.mark.parametrize("kind", ["new", "there", "link"])
def test_what_fails_says_why_and_leaves_the_place_as_it_was(tmp_path, monkeypatch, kind):
    def fails(out, backbone, transform):
        (out / "half").touch()
        raise TypeError("no place for it")

    monkeypatch.setitem(LAYOUTS, "timm", fails)
    out = tmp_path / "out"
    if kind != "new":
        (tmp_path / "folder").mkdir()
        out.symlink_to(tmp_path / "folder") if kind == "link" else out.mkdir()
    with pytest.raises(TypeError, match="no place for it"):
        export("demo", "timm", out)
    assert out.exists() == (kind != "new")
    assert kind == "new" or not any(out.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for out in (tmp_path, tmp_path / "README.md"):
        with pytest.raises(ValueError, match="not empty"):
            export("demo", "timm", out)
    assert (tmp_path / "README.md").read_text() == "mine"


def card(name):
    return model_card(name, load_teacher(name), "timm")


def test_the_card_has_the_runs_figures_settings_and_terms():
    text = card("photos")
    scores = json.loads((find_teacher("photos")[1] / "report.json").read_text())
    knn = [f"{scores[f'knn_{of}']:.3f}" for of in ("untrained", "color_histogram", "trained")]
    for part in (
        "# photos",
        "Imagenette",
        "ImageNet's terms hold",
        "| updates | 17640 |",
        "2 x 64 px + 4 x 32 px",
        f"| 20-NN accuracy | {' | '.join(knn)} |",
        "4 registers",
        "96 x 96 pixels",
        "(0.485, 0.456, 0.406)",
    ):
        assert part in text, part


def test_the_card_of_a_run_without_report_has_its_history(run, tmp_path):
    folder = run(dataset="shapes")
    lines = [{"step": 0, "knn": 0.25}, {"step": 4, "loss": 1.0}, {"step": 8, "knn": 0.75}]
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = card(folder)
    assert "| k-NN accuracy | 0.250 |  | 0.750 |" in text
    assert str(tmp_path) not in text


def test_the_card_of_ones_own_images_says_what_to_fill_in(run, tmp_path):
    text = card(run(dataset=str(tmp_path / "my secret pictures")))
    assert "To fill in before you publish" in text and "secret" not in text


def test_the_card_of_others_weights_says_whose_terms_hold(run, tmp_path):
    export(run(), "huggingface", tmp_path / "theirs")
    text = card(tmp_path / "theirs")
    assert "a ViT of Hugging Face" in text and "terms" in text
    assert "## Training" not in text and "## Measured" not in text
