"""A plain ViT as one graph: the ONNX file of `dino export`, and of the explorer's own photographs.

The graph takes any number of images of any whole number of patches: position embeddings are
resampled inside it, as two matrix products, which gives what timm gives with dynamic_img_size.
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dino_lib.backbone import Backbone, ConvStem
from dino_lib.data.batch_views import crop_matrix
from dino_lib.data.transforms import EvalTransform

OPSET = 18
OLDEST = "2.8"  # PyTorch's exporter: that of 2.6 fails on batch norm, so on a convolutional stem
MOST = 1024  # images at a time, and rows or columns of patches


class Looks(nn.Module):
    """What a ViT sees of images, without a branch that depends on them.

    outputs: of `sight`, in this order, what the module returns.
    """

    def __init__(self, vit: VisionTransformer, outputs: tuple[str, ...]):
        super().__init__()
        self.vit = vit
        self.outputs = outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W), normalised -> the outputs."""
        seen = self.sight(images)
        return tuple(seen[name] for name in self.outputs)

    def sight(self, images: Tensor) -> dict[str, Tensor]:
        """All that is seen of (B, C, H, W): `feature` (B, D), `patches` (B, h, w, D); and shares of
        attention: of CLS in the last block `attention` (B, heads, h, w), in every block `layers`
        (B, blocks, heads, h, w), of all T tokens in the last block `matrix` (B, heads, T, T).
        """
        vit = self.vit
        tokens, grid = self._tokens(images)
        rows = []
        for block in vit.blocks:
            matrix = _attention(block.attn, block.norm1(tokens))
            rows.append(matrix[:, :, 0, vit.num_prefix_tokens :].unflatten(-1, grid))
            tokens = block(tokens)
        tokens = vit.fc_norm(vit.norm(tokens))
        return {
            "feature": tokens[:, 0],
            "patches": tokens[:, vit.num_prefix_tokens :].unflatten(1, grid),
            "attention": rows[-1],
            "layers": torch.stack(rows, 1),
            "matrix": matrix,
        }

    def _tokens(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """CLS, registers and patches with their places, before the first block; the grid."""
        vit = self.vit
        embed = vit.patch_embed
        maps = embed.norm(embed.proj(images).permute(0, 2, 3, 1))  # (B, h, w, D)
        grid = maps.shape[1:3]
        beside = 0 if vit.no_embed_class else vit.num_prefix_tokens
        places = vit.pos_embed[0, beside:].unflatten(0, embed.grid_size)
        for n_out in grid:  # rows, then columns: each product brings the other side to the front
            places = torch.tensordot(_resampling(places.shape[0], n_out), places, 1).transpose(0, 1)
        prefix = [vit.cls_token] + [vit.reg_token] * (vit.reg_token is not None)
        prefix = torch.cat(prefix, 1)
        if beside:
            prefix = prefix + vit.pos_embed[:, :beside]
        patches = (maps + places).flatten(1, 2)
        prefix = prefix.expand(patches.shape[0], -1, -1)  # len() would fix the batch
        return vit.norm_pre(torch.cat([prefix, patches], 1)), grid


def _resampling(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in) weights, antialiased bicubic; for n_out = n_in the identity."""
    whole = torch.full((1,), float(n_in))
    return crop_matrix(torch.zeros(1), whole, n_in, n_out)[0]


def _attention(attention: Attention, tokens: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of all tokens, (B, heads, T, T)."""
    qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return (attention.scale * q @ k.transpose(-2, -1)).softmax(-1)


def check_plain(backbone: Backbone, what: str) -> VisionTransformer:
    """The ViT in a backbone. TypeError, saying that `what` needs one, if it is no plain one."""
    vit = backbone.model
    lacks = None
    if type(vit) is not VisionTransformer:
        lacks = f"it is a {type(vit).__name__}"
    elif vit.cls_token is None:
        lacks = "it has no CLS token"
    elif vit.pos_embed is None:
        lacks = "it has no position embeddings"
    elif type(vit.patch_embed) not in (PatchEmbed, ConvStem):
        lacks = f"its patches come from a {type(vit.patch_embed).__name__}"
    elif any(type(block) is not Block or type(block.attn) is not Attention for block in vit.blocks):
        lacks = "its blocks are of another kind"
    if lacks:
        raise TypeError(f"{what} is made of plain ViTs with a CLS token, and {lacks}: "
                        "--format timm takes any network")
    return vit


def write_onnx(path: str | Path, backbone: Backbone, transform: EvalTransform,
               outputs: tuple[str, ...] = ("feature", "attention")) -> None:
    """Write a plain ViT to an ONNX file: `images` (B, C, H, W) -> `outputs`, see `Looks.sight`.

    H and W are any multiples of the patch size. The file's metadata holds the transform's size,
    mean and std. Raises TypeError on other networks, ImportError without the packages and with a
    PyTorch that is too old.
    """
    vit = check_plain(backbone, "ONNX")
    _need_onnx()
    looks = Looks(copy.deepcopy(vit).cpu(), outputs).eval()
    height, width = backbone.patch_size
    example = torch.zeros(2, len(transform.mean), 5 * height, 7 * width)  # none equals another
    rows, columns = (torch.export.Dim(name, min=2, max=MOST) for name in ("rows", "columns"))
    batch = torch.export.Dim("batch", min=1, max=MOST)
    sizes = {0: batch, 2: height * rows, 3: width * columns}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own insides
        program = torch.onnx.export(
            looks, (example,), dynamo=True, verbose=False, opset_version=OPSET,
            input_names=["images"], output_names=list(outputs), dynamic_shapes=(sizes,))
    seen = {"size": transform.size, "mean": transform.mean, "std": transform.std}
    program.model.metadata_props.update({name: json.dumps(value) for name, value in seen.items()})
    program.save(path, external_data=False)


def _need_onnx() -> None:
    if torch.__version__ < OLDEST:
        raise ImportError(f"torch {torch.__version__} can't write ONNX: it takes torch {OLDEST}, "
                          "pip install --upgrade torch torchvision")
    try:
        import onnxscript  # noqa: F401 (torch.onnx uses it, and it uses onnx)
    except ImportError as error:
        raise ImportError("ONNX needs packages that are not installed: "
                          "pip install onnx onnxscript onnxruntime") from error
