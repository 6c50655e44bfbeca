"""Any timm model behind one small interface: image -> feature, patch tokens and their grid."""

import timm
import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn


class ConvStem(PatchEmbed):
    """Patch embedding by a stack of 3x3 convolutions instead of one linear map of each patch.

    A tiny ViT on a small budget needs it: with a linear embedding it learns next to nothing in a few hundred
    steps (Xiao et al. 2021, arXiv 2106.14881). Each convolution shrinks by a prime factor of the patch size (and is
    as large as that factor where it is above 3, to skip no pixels); a 1x1 convolution gives the embedding. The input's
    sides must be divisible by the patch size.
    """

    def __init__(self, *args, patch_size=16, in_chans=3, embed_dim=768, bias=True, **kwargs):
        super().__init__(*args, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, bias=bias, **kwargs)
        if self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"the convolutional stem takes square patches, not {self.patch_size}")
        layers, width = [], in_chans
        factors = _prime_factors(self.patch_size[0])
        for i, stride in enumerate(factors):
            out = max(embed_dim // 2 ** (len(factors) - 1 - i), 16)
            convolution = nn.Conv2d(width, out, max(3, stride), stride=stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(out), nn.GELU()]
            width = out
        self.proj = nn.Sequential(*layers, nn.Conv2d(width, embed_dim, 1, bias=bias))


def _prime_factors(n):
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors


class Backbone(nn.Module):
    """A timm model (`.model`, without classifier) with one interface to feature, patch tokens and grid.

    `feature_dim` is D. `patch_size` is (height, width) in pixels of one cell of the grid that `patch_tokens` gives.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        # some models give their pooled feature another width than their map: ask once, at the model's own size
        size = timm.data.resolve_model_data_config(model)["input_size"]
        embed = getattr(model, "patch_embed", None)
        # timm's config speaks of the pretrained weights, not of in_chans; the stem does
        self.channels = channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), size[0])
        size = (channels, *getattr(embed, "img_size", size[1:]))
        probe = torch.zeros(1, *size, device=next(model.parameters()).device)
        mode = model.training
        with torch.no_grad():
            model.eval()
            self.feature_dim = self(probe).shape[1]
            grid = self.patch_tokens(probe).shape[1:3]
        model.train(mode)
        self.patch_size = (size[1] // grid[0], size[2] // grid[1])

    @property
    def has_cls(self):
        """Whether a CLS token gives the feature."""
        return getattr(self.model, "cls_token", None) is not None

    def forward(self, x):
        """(B, C, H, W) -> (B, D): the final-norm CLS token where there is one, else timm's pooled feature."""
        if not self.has_cls:
            return self.model.forward_head(self._features(x), pre_logits=True)
        tokens = self._class_token(x) if self.training and self._plain() else self._features(x)
        # models that pool by the mean keep their final norm in fc_norm, after the pool
        return self._fc_norm(tokens[:, 0])

    def patch_tokens(self, x):
        """(B, C, H, W) -> (B, h, w, D): the last map, after the final norm, without CLS and register tokens."""
        tokens = self._features(x)
        if tokens.ndim == 4:
            return tokens if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else tokens.permute(0, 2, 3, 1)
        grid = self.grid(x.shape[-2:])
        patches = self._fc_norm(tokens[:, self.model.num_prefix_tokens :])
        return patches.unflatten(1, grid)

    def grid(self, image_size):
        """(H, W) in pixels -> (h, w) in patches, for models that cut the image into patches."""
        embed = self.model.patch_embed
        if hasattr(embed, "dynamic_feat_size"):
            return tuple(embed.dynamic_feat_size(tuple(image_size)))
        return image_size[0] // embed.patch_size, image_size[1] // embed.patch_size  # XCiT

    def _plain(self):
        """Whether this is timm's plain ViT, in whose last block the CLS token can be computed alone."""
        blocks = getattr(self.model, "blocks", ())
        return (type(self.model) is VisionTransformer and len(blocks) > 1 and type(blocks[-1]) is Block
                and type(blocks[-1].attn) is Attention and blocks[-1].attn.gate is None)

    def _class_token(self, x):
        """(B, C, H, W) -> (B, 1, D), `_features(x)[:, :1]`: the last block's other tokens are not read, so they skip
        its MLP.

        In training alone: elsewhere a hook on the last block may want to see all of it.
        """
        self._check(x)
        [(patches, prefix)] = self.model.forward_intermediates(
            x, [len(self.model.blocks) - 2], return_prefix_tokens=True, stop_early=True, output_fmt="NLC",
            intermediates_only=True)
        return self.model.norm(_class_token_block(self.model.blocks[-1], torch.cat([prefix, patches], 1)))

    def _fc_norm(self, tokens):
        return self.model.fc_norm(tokens) if hasattr(self.model, "fc_norm") else tokens

    def _features(self, x):
        self._check(x)
        return self.model.forward_features(x)

    def _check(self, x):
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"images {tuple(x.shape)}: expected (B, {self.channels}, H, W)")
        height, width = x.shape[-2:]
        embed = getattr(self.model, "patch_embed", None)
        if getattr(embed, "strict_img_size", False) and embed.img_size and (height, width) != tuple(embed.img_size):
            raise ValueError(
                f"{type(self.model).__name__} takes images of {tuple(embed.img_size)} only, got {(height, width)}: "
                f"create it with img_size={(height, width)}, or make every view that size")
        patch = getattr(embed, "patch_size", 1)
        patch = (patch, patch) if isinstance(patch, int) else patch
        if height % patch[0] or width % patch[1]:
            raise ValueError(f"image sides {(height, width)} must be divisible by the patch size {tuple(patch)}")


def _class_token_block(block, x):
    """timm's Block, (B, T, D) -> (B, 1, D): the CLS token asks, all tokens answer."""
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q[:, :, :1]), attn.k_norm(k)
    shares = attn.attn_drop((q * attn.scale @ k.transpose(-2, -1)).softmax(-1))  # (B, heads, 1, T)
    update = attn.proj_drop(attn.proj(attn.norm((shares @ v).transpose(1, 2).flatten(2))))
    x = x[:, :1] + block.drop_path1(block.ls1(update))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def create_backbone(name, *, pretrained=False, conv_stem=False, **timm_options):
    """A timm model by name, as a Backbone: `create_backbone("vit_small_patch16_224", img_size=96)`.

    `timm_options` go to `timm.create_model` (img_size, patch_size, in_chans, drop_path_rate, ...). Models that can
    take any image size are created so. `conv_stem` replaces a ViT's patch embedding by ConvStem. Raises ValueError
    on an unknown name, naming the closest ones, and on options that the model refuses.
    """
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        import difflib

        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise ValueError(f"timm has no model {name!r}; close names: {', '.join(close) or 'none'}")
    if conv_stem:
        timm_options["embed_layer"] = ConvStem
    try:
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **timm_options)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, **timm_options)
        return Backbone(model)
    except OSError:  # a download that fails
        raise
    except Exception as error:  # each model has its own way to refuse
        raise ValueError(f"{name} refuses the options {timm_options}: {error}") from error


def backbone_of(model):
    """The Backbone in a loaded teacher, a student or a teacher in training; a timm model gets one around it.

    Goes down `.backbone` and `.model`. Raises TypeError where there is neither, nor a timm model.
    """
    while not isinstance(model, Backbone):
        if hasattr(model, "forward_features"):
            return Backbone(model)
        inner = getattr(model, "backbone", getattr(model, "model", None))
        if inner is None:
            raise TypeError(f"{type(model).__name__} is no timm model and has none as .backbone or .model")
        model = inner
    return model
