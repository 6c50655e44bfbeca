from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from dino_lib.backbone import ConvStem, backbone_of, close_names, create_backbone
from dino_lib.head import MultiCropModel

VIT = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2}
SWIN = {"img_size": 64, "window_size": 2, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
# name: (timm's name, options, cell of the grid in pixels, feature width)
FAMILIES = {
    "vit": ("vit_tiny_patch16_224", VIT, 16, 32),
    "vit patch 8": ("vit_tiny_patch16_224", {**VIT, "patch_size": 8}, 8, 32),
    "vit, a rectangle": (
        "vit_tiny_patch16_224",
        {**VIT, "patch_size": 8, "img_size": (32, 64)},
        8,
        32,
    ),
    "vit with registers": (
        "vit_small_patch14_reg4_dinov2",
        {**VIT, "patch_size": 16, "init_values": 1.0},
        16,
        32,
    ),
    "vit, mean of the patches": ("vit_medium_patch16_reg4_gap_256", VIT, 16, 32),
    "vit with a convolutional stem": ("vit_tiny_patch16_224", {**VIT, "conv_stem": True}, 16, 32),
    "resnet": ("resnet18", {}, 32, 512),
    "convnext": ("convnext_atto", {}, 32, 320),
    "swin": ("swin_tiny_patch4_window7_224", SWIN, 8, 32),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 1}, 16, 128),
    "another width after the pool": ("mobilenetv3_small_050", {}, 32, 1024),
}
GREY = ["vit", "vit with a convolutional stem", "resnet", "swin", "xcit"]


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(family, **more):
    torch.manual_seed(0)
    name, options, _, _ = FAMILIES[family]
    return create_backbone(name, **options, **more)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(backbone in eval mode, cell, feature width), each family built once."""
    return build(request.param).eval(), *FAMILIES[request.param][2:]


def sizes_of(backbone):
    """Two (height, width). Before timm 1.0.31 a Swin takes only its own, which the error says."""
    own, other = (64, 64), (32, 64)
    if "Swin" in type(backbone.model).__name__ and not hasattr(backbone.model, "dynamic_img_size"):
        with pytest.raises(ValueError, match=r"any size need timm 1\.0\.31, this is"):
            backbone(images(2, 3, *other))
        return [own]
    return [own, other]


@torch.no_grad()
def test_feature_is_timms_own_at_every_size(family):
    backbone, cell, width = family
    assert backbone.num_features == width and backbone.patch_size == (cell, cell)
    for height, wide in sizes_of(backbone):
        x = images(2, 3, height, wide)
        y = backbone(x)
        assert y.shape == (2, width) and y.dtype == torch.float32
        torch.testing.assert_close(y, backbone.model(x))
        assert (y[0] - y[1]).abs().max() > 1e-4


@torch.no_grad()
def test_patch_tokens_are_the_last_map_without_cls_and_registers(family):
    backbone, cell, _ = family
    for height, wide in sizes_of(backbone):
        x = images(2, 3, height, wide)
        tokens, last = backbone.patch_tokens(x), backbone.model.forward_features(x)
        h, w = height // cell, wide // cell
        assert tokens.shape[:3] == (2, h, w)
        if last.ndim == 3:  # prefix tokens stand in front, patches follow row by row
            last = last[:, -h * w :].unflatten(1, (h, w))
            if not backbone.has_cls:
                last = backbone.model.fc_norm(last)
        elif last.shape[1:3] != (h, w) or tokens.shape[-1] != last.shape[-1]:
            last = last.permute(0, 2, 3, 1)
        torch.testing.assert_close(tokens, last)
        if backbone.has_cls:
            cls = backbone(x)[:, None, None]
            assert (tokens - cls).abs().amax(-1).min() > 1e-3


def test_a_gradient_reaches_every_parameter(family):
    backbone = family[0]
    backbone.zero_grad()
    y = backbone(images(2, 3, 64, 64))
    (
        y * images(*y.shape, seed=1)
    ).sum().backward()  # a plain sum of LayerNorm's output has no gradient
    assert all(p.grad is not None for p in backbone.parameters())
    stem = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    assert stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["resnet", "convnext"])
@torch.no_grad()
def test_patch_tokens_lie_where_their_pixels_are(family):
    backbone = build(family).eval()
    x = images(1, 3, 128, 256)
    changed = x.clone()
    changed[:, :, :32, -32:] += 3  # top right
    difference = (backbone.patch_tokens(x) - backbone.patch_tokens(changed)).norm(dim=-1)[0]
    assert difference.shape == (4, 8) and difference.argmax() == 7


@torch.no_grad()
def test_mean_pooled_patches_are_normalised_as_their_mean_is():
    tokens = build("vit, mean of the patches").eval().patch_tokens(images(2, 3, 64, 64))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 4, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(2, 4, 4), rtol=0, atol=1e-2)


@torch.no_grad()
def test_cls_token_of_a_model_that_pools_by_the_mean_is_normalised():
    """BEiT keeps its final norm after the pool: the CLS token goes through it too, and is not
    timm's feature.
    """
    backbone = create_backbone("beit_base_patch16_224", **VIT).eval()
    nn.init.normal_(backbone.model.cls_token)
    x = images(2, 3, 64, 64)
    cls = backbone.model.forward_features(x)[:, 0]
    torch.testing.assert_close(backbone(x), backbone.model.fc_norm(cls))
    torch.testing.assert_close(backbone(x).mean(-1), torch.zeros(2), rtol=0, atol=1e-5)
    assert not torch.allclose(backbone(x), backbone.model(x), atol=0.1)


@pytest.mark.parametrize("family", GREY)
@torch.no_grad()
def test_grey_images(family):
    backbone = build(family, in_chans=1)
    assert backbone(images(2, 1, 64, 64)).shape == (2, FAMILIES[family][3])
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\): expected \(B, 1, H, W\)"):
        backbone(images(2, 3, 64, 64))


# --- the convolutional stem ----------------------------------------------------------------------


@pytest.mark.parametrize(("patch_size", "strides"), [(16, [2, 2, 2, 2]), (6, [2, 3]), (10, [2, 5])])
def test_conv_stem(patch_size, strides):
    torch.manual_seed(0)
    side = 4 * patch_size
    stem = ConvStem(img_size=side, patch_size=patch_size, embed_dim=24).eval()
    convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert [c.stride[0] for c in convolutions] == [*strides, 1]
    assert [c.kernel_size[0] for c in convolutions] == [max(3, stride) for stride in strides] + [1]
    assert sum(isinstance(m, nn.GELU) for m in stem.modules()) == len(strides)

    x = images(1, 3, side, side).requires_grad_()
    tokens = stem(x).unflatten(1, (4, 4))
    assert tokens.shape == (1, 4, 4, 24)
    # a cell sees itself and some of what lies above it and to its left
    changed = x.detach().clone()
    changed[:, :, patch_size : 2 * patch_size, 2 * patch_size : 3 * patch_size] += (
        3  # the cell in row 1, column 2
    )
    difference = (stem(changed).unflatten(1, (4, 4)) - tokens).norm(dim=-1)[0]
    assert difference.nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    # no pixel is skipped; the padding is on the left, so that an odd factor leaves out the last two
    # rows and columns
    (gradient,) = torch.autograd.grad((tokens * images(*tokens.shape, seed=1)).sum(), x)
    assert (gradient.abs().sum(1)[0, :-2, :-2] > 0).all()


@pytest.mark.parametrize(("patch_size", "unseen"), [(4, []), (6, [46, 47]), (8, []), (16, [])])
def test_conv_stem_sees_all_but_the_last_pixels(patch_size, unseen):
    torch.manual_seed(0)
    stem = ConvStem(img_size=48, patch_size=patch_size, embed_dim=24).eval()
    x = images(1, 3, 48, 48).requires_grad_()
    tokens = stem(x)
    # weighed at random, so that no pixel's gradients cancel out
    (gradient,) = torch.autograd.grad((tokens * images(*tokens.shape, seed=1)).sum(), x)
    seen = gradient.abs().sum(1)[0] > 0
    for rows in (seen, seen.T):
        assert (~rows.any(1)).nonzero().flatten().tolist() == unseen
    assert seen[: 48 - len(unseen), : 48 - len(unseen)].all()


def test_conv_stem_takes_its_options_through_the_model():
    backbone = build("vit with a convolutional stem", patch_size=8)
    assert isinstance(backbone.model.patch_embed, ConvStem) and backbone.patch_size == (8, 8)
    assert not isinstance(build("vit").model.patch_embed, ConvStem)
    with pytest.raises(ValueError, match=r"square patches, not \(8, 4\)"):
        build("vit with a convolutional stem", patch_size=(8, 4))


# --- construction --------------------------------------------------------------------------------


def test_a_backbone_around_a_model_neither_runs_nor_changes_it():
    model, runs = timm.create_model("resnet18", num_classes=0), []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval().register_forward_pre_hook(lambda module, args: runs.append("model"))
    model.conv1.register_forward_pre_hook(lambda module, args: runs.append("first layer"))
    backbone = backbone_of(model)
    assert (backbone.num_features, backbone.patch_size, backbone.has_cls) == (512, (32, 32), False)
    assert backbone.grid((64, 96)) == (2, 3) and backbone.model is model
    assert not runs and not model.training
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_backbone_inside_anything():
    backbone = build("vit")
    student = MultiCropModel(backbone, nn.Identity())
    assert backbone_of(backbone) is backbone and backbone_of(student) is backbone
    assert backbone_of(SimpleNamespace(model=backbone)) is backbone  # as a loaded teacher holds it
    with pytest.raises(TypeError, match="Linear is no timm model"):
        backbone_of(nn.Linear(2, 2))


def test_there_is_no_classifier():
    assert not [
        m for m in build("vit").modules() if isinstance(m, nn.Linear) and m.out_features == 1000
    ]


def test_pretrained_and_options_reach_timm(monkeypatch):
    asked, create_model = [], timm.create_model

    def recorded(name, *, pretrained, **options):
        asked.append((name, pretrained, options))
        return create_model(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", recorded)
    backbone = create_backbone("vit_tiny_patch16_224", pretrained=True, drop_path_rate=0.3, **VIT)
    assert asked == [
        (
            "vit_tiny_patch16_224",
            True,
            {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": 0.3, **VIT},
        )
    ]
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("size", [(60, 64), (64, 60)])
def test_sides_that_the_patch_does_not_divide_are_refused(size):
    for call in (build("vit"), build("vit").patch_tokens):
        with pytest.raises(
            ValueError,
            match=rf"{size[0]}, {size[1]}\) must be divisible by the patch size \(16, 16\)",
        ):
            call(images(1, 3, *size))


def test_fixed_size_family_names_img_size():
    backbone = create_backbone("beit_base_patch16_224", **VIT)
    assert backbone(images(1, 3, 64, 64)).shape == (1, 32)
    with pytest.raises(
        ValueError, match=r"\(64, 64\) only, got \(64, 96\): create it with img_size=\(64, 96\)"
    ):
        backbone(images(1, 3, 64, 96))


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit_tiny_patch16_24", "vit_tiny_patch16_224"),
        ("dino_vits16", "vit_small_patch16_224.dino"),
        ("dino_vitb8", "vit_base_patch8_224.dino"),
        ("dino-vits8", "vit_small_patch8_224.dino"),
        ("facebook/dino-vitb16", "vit_base_patch16_224.dino"),
        ("vits16", "vit_small_patch16_224.dino"),
        ("dinov2_vitl14", "vit_large_patch14_dinov2.lvd142m"),
        ("dinov2_vitg14_reg_lc", "vit_giant_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dinov3-vits16-pretrain-lvd1689m", "vit_small_patch16_dinov3.lvd1689m"),
    ],
)
def test_unknown_names_suggest_what_was_meant(name, close):
    with pytest.raises(ValueError, match=f"no model '{name}'; close names: .*{close}"):
        create_backbone(name)
    assert len(close_names(name)) <= 3


@pytest.mark.parametrize("kind", ["dinov2_vit{}14", "dinov2_vit{}14_reg", "dinov3_vit{}16"])
def test_the_official_names_stand_for_weights_that_timm_has(kind):
    for size in ["s", "b", "l"]:
        name = kind.format(size)
        close = close_names(name)[0]
        assert close in timm.list_pretrained() and ("reg4" in close) == ("reg" in name)
        assert name[:6] in close and f"patch{name[11:13]}" in close


def test_weights_are_float32_whatever_torchs_default(double_by_default):
    backbone = build("vit").train()
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone(images(2, 3, 64, 64).float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_224", {"banana": 3}, "banana"),
        ("vit_tiny_patch16_224", {"embed_dim": 65, "num_heads": 4}, "divisible"),
        ("resnet18", {"conv_stem": True}, "embed_layer"),
    ],
)
def test_wrong_options_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=f"{name} refuses the options .*{message}"):
        create_backbone(name, **options)
