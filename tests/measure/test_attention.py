import copy
from inspect import signature

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.eva import Eva
from torch import nn

from dino_lib.backbone import create_backbone
from dino_lib.head import DINOHead, MultiCropModel
from dino_lib.measure import attention
from dino_lib.measure.attention import (
    cls_attention,
    every_layer,
    full_attention,
    pooled_similarity,
    queries_keys_values,
    rollout,
)

SMALL = {"depth": 2, "embed_dim": 96, "num_heads": 3}
# timm has it from 1.0.30 on
SHARED_KEYS = {"num_kv_heads": 1} if "num_kv_heads" in signature(Eva).parameters else {}
VITS = {  # name: options of create_backbone, patch size, prefix tokens, image sizes
    "vit_tiny_patch16_224": ({"depth": 2}, 16, 1, [(48, 32), (32, 80)]),
    "vit_small_patch8_224": ({"depth": 2}, 8, 1, [(32, 24), (16, 40)]),
    "vit_small_patch14_reg4_dinov2": ({"depth": 2, "img_size": 56}, 14, 5, [(42, 28), (28, 70)]),
    "vit_small_patch16_dinov3": ({"depth": 2}, 16, 5, [(48, 32), (32, 80)]),
    "vit_small_patch16_dinov3_qkvb": ({"depth": 2}, 16, 5, [(48, 32), (32, 80)]),
    "eva02_tiny_patch14_224": ({"depth": 2}, 14, 1, [(42, 28), (28, 70)]),
    "eva02_base_patch14_224": (
        SMALL,
        14,
        1,
        [(42, 28), (28, 70)],
    ),  # q, k and v apart, a norm before the projection
    "eva_giant_patch14_224": (SMALL, 14, 1, [(42, 28), (28, 70)]),
    "deit3_small_patch16_224": ({"depth": 2}, 16, 1, [(48, 32), (32, 80)]),
    "deit_tiny_distilled_patch16_224": ({"depth": 2}, 16, 2, [(48, 32), (32, 80)]),
    "vit_base_patch16_clip_224": (SMALL, 16, 1, [(48, 32), (32, 80)]),
    "vit_small_patch16_rope_mixed_224": (SMALL, 16, 1, [(48, 32), (32, 80)]),
    "vit_pe_core_tiny_patch16_384": (
        {**SMALL, "qkv_fused": False, **SHARED_KEYS},
        16,
        1,
        [(48, 32), (32, 80)],
    ),
    "vit_tiny_patch16_224 qk_norm": ({"depth": 2, "qk_norm": True}, 16, 1, [(48, 32), (32, 80)]),
    "vit_tiny_patch16_224 patch 4": (
        {**SMALL, "patch_size": 4, "img_size": 32},
        4,
        1,
        [(16, 12), (8, 20)],
    ),
    "vit_tiny_patch16_224 conv stem": (
        {**SMALL, "patch_size": 8, "img_size": 48, "conv_stem": True},
        8,
        1,
        [(48, 32), (16, 40)],
    ),
    "beitv2_base_patch16_224": (
        {**SMALL, "img_size": (64, 48)},
        16,
        1,
        [(64, 48)],
    ),  # takes its own size alone
    "beitv2_base_patch16_224 wide": ({**SMALL, "img_size": (32, 80)}, 16, 1, [(32, 80)]),
}


def randomise(model):
    """Random weights at which attention is far from uniform and no bias, norm or layer scale is
    trivial.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if ".attn." in name and p.ndim == 2 and "attn.proj." not in name:
                p.copy_(1.5 * noise / p.shape[1] ** 0.5)  # scores of deviation 1.5 ** 2
            elif "patch_embed" in name and p.ndim == 4:
                p.copy_(
                    noise * (2 / p[0].numel()) ** 0.5
                )  # a stem of several layers would shrink the differences
            elif "patch_embed" not in name and (
                p.ndim == 1 or "relative_position_bias_table" in name
            ):
                p.add_(0.5 * noise)
    return model.eval()


def build(case):
    torch.manual_seed(0)
    options = VITS[case][0] if case in VITS else {}
    return randomise(create_backbone(case.split()[0], **options))


def images_of(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def from_the_fused_kernel(backbone, attn, images):
    """softmax(q k^T / sqrt(d) + bias) of what this attention hands to torch's fused kernel; q, k
    and v.
    """
    seen, inside, fused = [], [], F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **options):
        if inside:
            seen.append((q, k, v, 0 if attn_mask is None else attn_mask))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", spy)
        hooks = [
            attn.register_forward_pre_hook(lambda module, args: inside.append(1)),
            attn.register_forward_hook(lambda module, args, out: inside.clear()),
        ]
        backbone.patch_tokens(images)
    for hook in hooks:
        hook.remove()
    [(q, k, v, bias)] = seen
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # several heads may share a key
    return (q @ keys.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias).softmax(-1), (q, k, v)


def check_against(backbone, attn, images, layer, patch, prefix):
    matrix, qkv = from_the_fused_kernel(backbone, attn, images)
    h, w = images.shape[-2] // patch, images.shape[-1] // patch
    assert (
        matrix.shape[-1] == prefix + h * w and matrix.amax(-1).mean() > 1.5 / matrix.shape[-1]
    )  # not uniform

    full = full_attention(backbone, images, layer=layer)
    torch.testing.assert_close(full, matrix, atol=3e-6, rtol=0)
    cls = cls_attention(backbone, images, layer=layer)
    torch.testing.assert_close(
        cls, matrix[:, :, 0, prefix:].unflatten(-1, (h, w)), atol=3e-6, rtol=0
    )
    if type(attn) is Attention:
        for found, expected in zip(
            queries_keys_values(backbone, images, layer=layer), qkv, strict=True
        ):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", VITS)
def test_maps_are_the_blocks_own_softmax(case):
    backbone = build(case)
    _, patch, prefix, sizes = VITS[case]
    for size in sizes:
        check_against(backbone, backbone.model.blocks[-1].attn, images_of(size), -1, patch, prefix)
    check_against(backbone, backbone.model.blocks[0].attn, images_of(sizes[0]), 0, patch, prefix)


def test_a_bias_that_all_blocks_of_beit_share():
    backbone = randomise(
        create_backbone(
            "beit_base_patch16_224",
            **SMALL,
            img_size=(48, 32),
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
        )
    )
    check_against(backbone, backbone.model.blocks[-1].attn, images_of((48, 32)), -1, 16, 1)


@pytest.mark.parametrize(
    "name, options, patch",
    [
        ("xcit_nano_12_p8_224", {"depth": 1}, 8),
        ("cait_xxs24_224", {"depth": 1, "img_size": (48, 32)}, 16),
    ],
)
def test_class_attention(name, options, patch):
    backbone, images = randomise(create_backbone(name, **options)), images_of((48, 32))
    blocks = (
        backbone.model.cls_attn_blocks
        if name.startswith("xcit")
        else backbone.model.blocks_token_only
    )
    for layer in (-1, 0):
        matrix, _ = from_the_fused_kernel(backbone, blocks[layer].attn, images)  # (B, heads, 1, T)
        maps = cls_attention(backbone, images, layer=layer)
        grid = (48 // patch, 32 // patch)
        torch.testing.assert_close(maps, matrix[:, :, 0, 1:].unflatten(-1, grid), atol=3e-6, rtol=0)
        assert matrix.amax(-1).mean() > 1.5 / matrix.shape[-1]
    for refused in (full_attention, rollout):
        with pytest.raises(TypeError, match="class attention"):
            refused(backbone, images)
        assert all(block.attn.fused_attn for block in blocks)


def test_queries_of_other_attention_are_refused():
    backbone = create_backbone("vit_small_patch16_dinov3", depth=1)
    with pytest.raises(TypeError, match="Eva has EvaAttention: queries, keys and values"):
        queries_keys_values(backbone, images_of((32, 32)))


def test_many_large_images_go_a_few_at_a_time(tiny, monkeypatch):
    images, seen = images_of((16, 12), batch=5), []
    expected = cls_attention(tiny, images), full_attention(tiny, images)
    monkeypatch.setattr(attention, "ROOM", 2 * 3 * 13**2)  # two images: 3 heads, 13 tokens
    hook = tiny.model.blocks[0].register_forward_hook(
        lambda module, args, out: seen.append(len(out))
    )
    found = cls_attention(tiny, images), full_attention(tiny, images)
    hook.remove()
    assert seen == [2, 2, 1] * 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    monkeypatch.setattr(attention, "ROOM", 1)
    torch.testing.assert_close(cls_attention(tiny, images), expected[0])


@pytest.mark.parametrize("case", ["vit_tiny_patch16_224 patch 4", "vit_tiny_patch16_224 qk_norm"])
def test_a_bf16_model_takes_float32_images(case):
    tiny = build(case)
    half = copy.deepcopy(tiny).bfloat16()
    images = images_of((32, 48))
    assert all(part.dtype == torch.float32 for part in queries_keys_values(half, images))
    for look in (cls_attention, rollout, pooled_similarity):
        maps = look(half, images)
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, look(tiny, images), atol=0.1, rtol=0.1)


@pytest.fixture(scope="module")
def tiny():
    return build("vit_tiny_patch16_224 patch 4")


def test_layers_count_from_both_ends(tiny):
    images = images_of((16, 12))
    first, last = cls_attention(tiny, images, layer=0), cls_attention(tiny, images)
    assert torch.equal(cls_attention(tiny, images, layer=-2), first)
    assert torch.equal(cls_attention(tiny, images, layer=1), last) and not torch.allclose(
        first, last
    )
    for layer in (2, -3):
        with pytest.raises(ValueError, match=f"layer={layer}.*2 such blocks"):
            cls_attention(tiny, images, layer=layer)


def test_whatever_holds_the_model(tiny):
    images = images_of((16, 12))
    expected = cls_attention(tiny, images)
    holder = nn.Module()
    holder.model = MultiCropModel(tiny, DINOHead(96, 8, hidden_dim=8, bottleneck_dim=4))
    for model in (holder, holder.model, tiny.model):
        assert torch.equal(cls_attention(model, images), expected)
    with pytest.raises(TypeError, match="Linear is no timm model"):
        cls_attention(nn.Linear(3, 3), images)


def test_nothing_of_the_model_changes():
    torch.manual_seed(0)
    backbone = create_backbone(
        "vit_tiny_patch16_224",
        **SMALL,
        img_size=48,
        patch_size=8,
        conv_stem=True,
        attn_drop_rate=0.5,
        proj_drop_rate=0.5,
        drop_path_rate=0.5,
    )
    images = images_of((48, 32))
    expected = cls_attention(randomise(backbone), images)
    backbone.train()
    backbone.model.blocks[0].eval()
    state = {name: value.clone() for name, value in backbone.state_dict().items()}

    def facts():
        return [
            (
                m.training,
                len(m._forward_pre_hooks),
                len(m._forward_hooks),
                getattr(m, "fused_attn", None),
            )
            for m in backbone.modules()
        ]

    before = facts()
    assert torch.equal(cls_attention(backbone, images), expected)  # eval mode during the call
    for look in (full_attention, every_layer, rollout, queries_keys_values):
        look(backbone, images)
    pooled_similarity(backbone.model, images)
    for look in (cls_attention, full_attention, every_layer, rollout, queries_keys_values):
        with pytest.raises(ValueError, match="divisible"):
            look(backbone, images_of((44, 32)))
    assert facts() == before
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("look", [cls_attention, full_attention, rollout, pooled_similarity])
def test_maps_are_plain_float32_tensors(tiny, look):
    maps = look(tiny, images_of((16, 12)).requires_grad_())
    assert maps.dtype == torch.float32 and not maps.requires_grad and not maps.is_inference()


def test_only_the_asked_blocks_leave_the_fused_kernel_and_every_layer_takes_one_pass(
    tiny, monkeypatch
):
    calls, fused, passes = [], F.scaled_dot_product_attention, []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kw: calls.append(1) or fused(*args, **kw)
    )
    hook = tiny.model.patch_embed.register_forward_hook(lambda *args: passes.append(1))
    cls_attention(tiny, images_of((16, 12)))
    assert len(calls) == 1 and len(passes) == 1  # the other of two blocks
    every_layer(tiny, images_of((16, 12)))
    hook.remove()
    assert len(calls) == 1 and len(passes) == 2


def test_every_layer_in_one_pass(tiny):
    images = images_of((16, 12))
    each = torch.stack([cls_attention(tiny, images, layer=layer) for layer in (0, 1)])
    torch.testing.assert_close(every_layer(tiny, images), each)


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet10t", {}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
        ("vit_base_patch16_siglip_224", SMALL),
        ("mixer_s32_224", {}),
    ],
)
def test_models_without_a_cls_row_say_what_to_use(name, options):
    model = timm.create_model(name, num_classes=0, **options)
    for look in (cls_attention, rollout, every_layer):
        with pytest.raises(TypeError, match="pooled_similarity"):
            look(model, torch.zeros(1, 3, 224, 224))
    if not name.startswith("vit"):
        with pytest.raises(TypeError, match="pooled_similarity"):
            full_attention(model, torch.zeros(1, 3, 224, 224))


def test_a_patch_attends_without_a_cls_token():
    backbone = randomise(create_backbone("vit_base_patch16_siglip_224", **SMALL))
    matrix, _ = from_the_fused_kernel(backbone, backbone.model.blocks[-1].attn, images_of((48, 32)))
    found = full_attention(backbone, images_of((48, 32)))
    torch.testing.assert_close(found, matrix, atol=1e-5, rtol=0)


def test_attention_whose_heads_lie_among_the_images_is_refused():
    model = create_backbone("samvit_base_patch16_224", img_size=64, embed_dim=24, depth=2,
                            num_heads=2, global_attn_indexes=(0, 1))  # fmt: skip
    with pytest.raises(TypeError, match="can be read"):
        full_attention(model, torch.zeros(2, 3, 64, 64))


def test_attention_that_cannot_be_read_is_refused():
    model = timm.create_model(
        "convit_tiny", num_classes=0
    )  # the CLS token comes in with the last two blocks
    assert cls_attention(model, torch.zeros(1, 3, 224, 224)).shape == (1, 4, 14, 14)
    for look in (lambda m, x: cls_attention(m, x, layer=0), every_layer, rollout):
        with pytest.raises(TypeError, match="can be read"):
            look(model, torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(
    "case, size",
    [
        ("vit_tiny_patch16_224 patch 4", (16, 13)),
        ("beitv2_base_patch16_224", (48, 48)),
        ("xcit_nano_12_p8_224", (20, 16)),
    ],
)
def test_unfit_sizes_are_refused(case, size):
    backbone = build(case)
    for model in (backbone, backbone.model):
        with pytest.raises(ValueError, match=f"{size[0]}.*{size[1]}") as refusal:
            cls_attention(model, images_of(size))
        assert (f"img_size={size}" in str(refusal.value)) == case.startswith(
            "beit"
        )  # a family of fixed size


def test_unfit_images_are_refused(tiny):
    with pytest.raises(TypeError, match="uint8"):
        cls_attention(tiny, torch.zeros(1, 3, 16, 12, dtype=torch.uint8))


def test_rollout_is_the_product_of_the_blocks(tiny):
    images = images_of((16, 12))
    first, second = (
        (full_attention(tiny, images, layer=i).mean(1) + torch.eye(13)) / 2 for i in (0, 1)
    )
    expected = (second @ first)[:, 0, 1:].reshape(2, 4, 3)
    torch.testing.assert_close(rollout(tiny, images), expected, atol=3e-6, rtol=0)
    assert not torch.allclose((first @ second)[:, 0, 1:].reshape(2, 4, 3), expected, atol=1e-4)


@pytest.mark.parametrize(
    "name, options, grid",
    [
        ("resnet10t", {}, (2, 3)),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "img_size": (64, 96)}, (2, 3)),
    ],
)
def test_pooled_similarity_is_the_cosine_with_the_mean(name, options, grid):
    backbone, images = create_backbone(name, **options).eval(), images_of((64, 96))
    with torch.no_grad():
        maps = backbone.model.forward_features(images)
    maps = maps if name.startswith("resnet") else maps.permute(0, 3, 1, 2)  # (B, D, h, w)
    similarity = pooled_similarity(backbone, images)
    assert similarity.shape == (2, 1, *grid)
    pooled = F.normalize(maps.mean((2, 3)), dim=1)
    expected = torch.einsum("bd,bdhw->bhw", pooled, F.normalize(maps, dim=1))[:, None]
    torch.testing.assert_close(similarity, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled_similarity(backbone.model, images), similarity)
