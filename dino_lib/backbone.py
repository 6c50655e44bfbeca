"""Any timm model behind one small interface: image -> feature, patch tokens and their grid."""

import difflib
import math
import re
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.xcit import ConvPatchEmbed
from torch import Tensor, nn

SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant", "h": "huge"}


class ConvStem(PatchEmbed):
    """Patch embedding by a stack of 3x3 convolutions instead of one linear map of each patch.

    A tiny ViT on a small budget needs it: with a linear embedding it learns next to nothing in a
    few hundred steps (Xiao et al. 2021, arXiv 2106.14881). Each convolution shrinks by a prime
    factor of the patch size (and is as large as that factor where it is above 3); a 1x1
    convolution gives the embedding. The image's sides must be divisible by the patch size. With
    an odd factor the last rows and columns of pixels stay unseen: two of 48 with patches of 6,
    none with patches of 4, 8 or 16.
    """

    def __init__(self, *args, patch_size=16, in_chans=3, embed_dim=768, bias=True, **kwargs):
        sizes = {"patch_size": patch_size, "in_chans": in_chans, "embed_dim": embed_dim}
        super().__init__(*args, **sizes, bias=bias, **kwargs)
        if self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"the convolutional stem takes square patches, not {self.patch_size}")
        factors = _prime_factors(self.patch_size[0])
        layers, width = [], in_chans
        for i, stride in enumerate(factors):
            halvings = len(factors) - 1 - i
            out = max(embed_dim // 2**halvings, 16)
            kernel = max(3, stride)
            convolution = nn.Conv2d(width, out, kernel, stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, patches, embed_dim), or as timm's PatchEmbed is told to."""
        # with the channels innermost, as the blocks have them: a CPU convolves faster so
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def _prime_factors(n):
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors


class Backbone(nn.Module):
    """A timm model (`.model`, without classifier) with one interface to feature and patch tokens.

    Nothing is computed before it is asked for: wrapping a model neither runs nor changes it.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def num_features(self) -> int:
        """D, the width of the feature. Some models give it another width than their last map."""
        return getattr(self.model, "head_hidden_size", self.model.num_features)

    @property
    def has_cls(self) -> bool:
        """Whether a CLS token gives the feature."""
        return getattr(self.model, "cls_token", None) is not None

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens (CLS and registers) stand before those of the patches."""
        return getattr(self.model, "num_prefix_tokens", int(self.has_cls))

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) in pixels of one cell of the grid that `patch_tokens` gives.

        TypeError where timm doesn't say it, as for a few models before timm 1.0.31.
        """
        if not hasattr(self.model, "feature_info"):
            name = type(self.model).__name__
            raise TypeError(f"timm {timm.__version__} doesn't say how large {name}'s patches are: "
                            f"it gives no grid of patches")
        stride = self.model.feature_info[-1]["reduction"]
        embed = getattr(self.model, "patch_embed", None)
        # 0: of a ConViT before timm 1.0.31
        if isinstance(embed, PatchEmbed) and stride in (max(embed.patch_size), 0):
            return tuple(embed.patch_size)  # may be a rectangle
        return stride, stride

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels -> (h, w) in patches."""
        height, width = self.patch_size
        return math.ceil(image_size[0] / height), math.ceil(image_size[1] / width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the final-norm CLS token, or timm's pooled feature without one.

        ValueError on images that the model does not take.
        """
        features = self._features(x)
        if not self.has_cls:
            return self.model.forward_head(features, pre_logits=True)
        return self._fc_norm(features[:, 0])

    def patch_tokens(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, D): the last map, final-norm, without CLS and register tokens.

        TypeError if the model gives no grid of patches, ValueError on images that it does not take.
        """
        features = self._features(x)
        if torch.is_tensor(features) and features.ndim == 4:
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return features if channels_last else features.permute(0, 2, 3, 1)
        grid = self.grid(x.shape[-2:])
        n_tokens = self.num_prefix_tokens + grid[0] * grid[1]
        if not torch.is_tensor(features) or features.shape[1] != n_tokens:
            raise TypeError(f"{type(self.model).__name__} gives no grid of patches, only a feature")
        patches = self._fc_norm(features[:, self.num_prefix_tokens :])
        return patches.unflatten(1, grid)

    def _fc_norm(self, tokens):
        """Models that pool by the mean keep their final norm in fc_norm, after the pool."""
        return self.model.fc_norm(tokens) if hasattr(self.model, "fc_norm") else tokens

    def _features(self, x):
        self._check(x)
        return self.model.forward_features(x)

    def _check(self, x):
        # a list: torch.compile of PyTorch 2.6 takes no next() with a default
        convolutions = [m for m in self.model.modules() if isinstance(m, nn.Conv2d)]
        channels = convolutions[0].in_channels if convolutions else None
        known = channels in (1, 3)  # a few models rearrange the pixels before they convolve
        if x.ndim != 4 or (known and x.shape[1] != channels):
            raise ValueError(f"images {tuple(x.shape)}: expected (B, {channels or 'C'}, H, W)")
        embed = getattr(self.model, "patch_embed", None)
        if not isinstance(embed, (PatchEmbed, ConvPatchEmbed)):
            return  # timm says itself what it does not take
        size = tuple(x.shape[-2:])
        own = getattr(embed, "img_size", None)
        if getattr(embed, "strict_img_size", False) and own and size != tuple(own):
            name = type(self.model).__name__
            newer = ""
            if "Swin" in name and not hasattr(self.model, "dynamic_img_size"):
                newer = f"; Swins of any size need timm 1.0.31, this is {timm.__version__}"
            raise ValueError(
                f"{name} takes images of {tuple(own)} only, got {size}: create it with "
                f"img_size={size}, or make every view that size{newer}"
            )
        patch = embed.patch_size
        patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
        if size[0] % patch[0] or size[1] % patch[1]:
            raise ValueError(f"image sides {size} must be divisible by the patch size {patch}")


def create_backbone(
    name: str, *, pretrained: bool = False, conv_stem: bool = False, **timm_options: Any
) -> Backbone:
    """A timm model by name, as a Backbone: `create_backbone("vit_small_patch16_224", img_size=96)`.

    `timm_options` go to `timm.create_model` (img_size, patch_size, in_chans, drop_path_rate, ...).
    Models that can take any image size are created so. `conv_stem` replaces a ViT's patch embedding
    by ConvStem. Weights are float32. ValueError on an unknown name, naming the closest ones, and on
    options that the model refuses.
    """
    at_a_hub = name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not (at_a_hub or timm.is_model(name)):
        close = ", ".join(close_names(name)) or "none"
        raise ValueError(f"timm has no model {name!r}; close names: {close}")
    if conv_stem:
        timm_options["embed_layer"] = ConvStem
    try:
        model = _create(name, pretrained, timm_options)
    except OSError:  # a download that fails
        raise
    except Exception as error:  # each model has its own way to refuse
        what = f"refuses the options {timm_options}" if timm_options else "can't be built"
        raise ValueError(f"{name} {what}: {error}") from error
    return Backbone(model.float())


def _create(name, pretrained, options):
    options = {"pretrained": pretrained, "num_classes": 0, **options}
    try:
        return timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(name, **options)


def close_names(name: str) -> list[str]:
    """Up to three of timm's names that someone who wrote `name` may have meant.

    torch.hub and Hugging Face call the official weights dino_vits16, dinov2_vitl14_reg, ...
    """
    name = name.lower().replace("-", "_")
    official = re.search(r"(dinov[23])?_?vit([a-z]|7b)(\d+)(plus)?(_reg)?", name)
    found = []
    if official:
        kind, size, patch, plus, registers = official.groups()
        size = SIZES.get(size, size) + ("_plus" if plus else "")
        register = "reg4_" if registers else ""
        weights = f"{kind}.*" if kind else "*.dino"
        found = timm.list_pretrained(f"vit_{size}_patch{patch}_{register}{weights}")
    return (found or difflib.get_close_matches(name, timm.list_models(), cutoff=0.5))[:3]


def backbone_of(model: object) -> Backbone:
    """The Backbone in a loaded teacher, a student or a teacher in training, or around a timm model.

    Goes down `.backbone` and `.model`. TypeError where there is neither, nor a timm model.
    """
    while not isinstance(model, Backbone):
        if hasattr(model, "forward_features"):
            return Backbone(model)
        inner = getattr(model, "backbone", getattr(model, "model", None))
        if inner is None:
            name = type(model).__name__
            raise TypeError(f"{name} is no timm model and has none as .backbone or .model")
        model = inner
    return model
