"""What each family of timm's models gives here, in `dino_lib/backbones.md`.

`python tests/method/test_families.py` writes the table; the tests hold it.
"""

import re
from pathlib import Path

import pytest
import timm
import torch

from dino_lib import backbone as module
from dino_lib.backbone import create_backbone
from dino_lib.measure.attention import cls_attention

TABLE = Path(module.__file__).with_name("backbones.md")
WORDS = """\
# Families of timm's models

Made by `python tests/method/test_families.py`, held by the tests of the same file: one small member
of each family at its own size, with random weights. Every one of them has a feature, so k-NN and
training work; D is its width. A grid of patches is what `patch_tokens`, clusters and the maps of a
CNN need; heads' attention maps need a CLS token whose attention can be read. Not tried, as they are
large or slow: deepseek_vit, gemma4_vit, inception, mobilenetv5, nasnet, pnasnet, qwen3_vit, vgg.

| family | tried | image | D | grid | CLS attention |
| --- | --- | --- | --- | --- | --- |
"""
TINY = {"depth": 2, "embed_dim": 96, "num_heads": 3}  # of families without a small member
FAMILIES = {
    "beit": ("beit_base_patch16_224", TINY),
    "byoanet": ("halonet26t", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", {"depth": 2}),
    "coat": ("coat_lite_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("convnext_atto", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1)}),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2}),
    "dinov3": ("vit_small_patch16_dinov3", {"depth": 2}),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "ghostnet": ("ghostnet_050", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {"stages": (1, 1, 1, 1)}),
    "hrnet": ("hrnet_w18_small", {}),
    "inception_next": ("inception_next_atto", {}),
    "levit": ("levit_128s", {}),
    "mambaout": ("mambaout_femto", {}),
    "maxxvit": ("coatnet_pico_rw_224", {}),
    "metaformer": ("poolformerv2_s12", {}),
    "mixer": ("mixer_s32_224", {}),
    "gmlp": ("gmlp_ti16_224", {}),
    "resmlp": ("resmlp_12_224", {}),
    "mobilenetv3": ("mobilenetv3_small_050", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", TINY),
    "nest": ("nest_tiny", {}),
    "pit": ("pit_ti_224", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "regnet": ("regnetx_002", {}),
    "repvit": ("repvit_m0_9", {}),
    "resnet": ("resnet18", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "sequencer": ("sequencer2d_s", {"layers": (1, 1, 1, 1)}),
    "shvit": ("shvit_s1", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
    "swin_v2": ("swinv2_tiny_window8_256", {"depths": (1, 1, 1, 1)}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_legacy_patch16_224", {"depth": 2}),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {"depths": (1, 1, 1, 1)}),
    "visformer": ("visformer_tiny", {}),
    "vit": ("vit_tiny_patch16_224", {"depth": 2}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 224}),
    "siglip": ("vit_base_patch16_siglip_224", TINY),
    "vit_hybrid": ("vit_tiny_r_s16_p8_224", {"depth": 2}),
    "vit_relpos": ("test_vit_relpos", {}),
    "vit_sam": ("samvit_base_patch16_224", {**TINY, "global_attn_indexes": (1,)}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 2}),
}


@torch.no_grad()
def row(family):
    """The family's line of the table, from one small member."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    backbone = create_backbone(name, **options).eval()
    size = timm.data.resolve_model_data_config(backbone.model)["input_size"]
    size = (3, options["img_size"], options["img_size"]) if "img_size" in options else size
    x = torch.randn(1, *size)
    feature = backbone(x)
    assert feature.shape == (1, backbone.num_features) and feature.isfinite().all()
    try:
        h, w, width = backbone.patch_tokens(x).shape[1:]
        grid = f"{h} x {w}"
        assert (h, w) == backbone.grid(size[1:]) and width > 0
    except TypeError as error:
        assert "gives no grid of patches" in str(error)
        grid = "no"
    try:
        looks = "yes" if cls_attention(backbone, x).sum() > 0 else "no"
    except TypeError:
        looks = "no"
    return f"| {family} | {name} | {size[1]} | {backbone.num_features} | {grid} | {looks} |\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_the_family_gives(family):
    if not timm.is_model(FAMILIES[family][0]):
        pytest.skip(f"timm {timm.__version__} has no {FAMILIES[family][0]}")
    table, found = TABLE.read_text(encoding="utf-8").splitlines(keepends=True), row(family)
    if not hasattr(create_backbone(FAMILIES[family][0]).model, "feature_info"):  # before 1.0.31
        table = [re.sub(r"\d+ x \d+", "no", line) for line in table]
    assert found in table


def test_the_table_holds_these_families_and_no_others():
    lines = TABLE.read_text(encoding="utf-8").removeprefix(WORDS).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(FAMILIES)


if __name__ == "__main__":
    rows, failed = [], []
    for name in FAMILIES:
        try:
            rows.append(row(name))
        except Exception as error:
            failed.append(f"{name}: {error!r}")
    TABLE.write_text(WORDS + "".join(rows), encoding="utf-8")
    print("\n".join(failed) or f"{len(rows)} families")
