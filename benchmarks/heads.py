"""Which head to show, without masks? `python benchmarks/heads.py demo photos --horses DIR`.

For each teacher (what `load_teacher` takes) and each criterion, which see maps and features but no
mask: above blind of the head that it chooses over that of the best head. Teachers of the embedded
pictures are asked on 300 of them (seed 1), and every teacher on the horses (see horses.py) if DIR
is given. Beside it a random head (the mean over the heads) and head 0. Then a table of each
teacher's heads on its own pictures: what it looks at, and, on the embedded ones, what the 20-NN
loses when it is taken out of the last block, and what above blind of the heads' mean map loses.

A criterion that is picked among many looks better than it is. `inside` was picked among some eighty
on thirteen pairs of teacher and pictures, where it reached 0.99; on four pairs of two teachers that
came later 0.93. On horses it then gave teachers of photographs 0.20, 0.65 and, early in its run,
0.11. `foreground`, which `choose_head` goes by now, adds two numbers that were set on 23 pairs with
these three among them: 1.00, 1.00 and, at its end, 0.75. On the `photos` that ships, which came
later, it gets 0.61 (a random head 0.33). On ten teachers that came later (the
preset demo, seeds 0 to 4, with the creatures as first drawn and as they are) it gets 0.99 on the
creatures and 0.91 on the horses, `inside` 0.98 and 0.87, agreement 0.99 and 0.94, a random head
0.71 and 0.60.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from horses import attention, read_horses
from torch import Tensor

from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import normalize
from dino_lib.measure.attention import cls_attention, full_attention, queries_keys_values
from dino_lib.measure.features import patch_features
from dino_lib.measure.heads import (
    agreement,
    entropy,
    foreground,
    head_table,
    inside,
    variety,
    without_head,
)
from dino_lib.measure.knn import accuracy, knn_predict
from dino_lib.measure.masks import above_blind, patch_masks
from dino_lib.run.build import open_probes
from dino_lib.teachers.load import load_teacher


@dataclass
class Look:
    """What a network makes of pictures; h x w patches, P in all."""

    maps: Tensor  # (N, heads, h, w)
    mirrored: Tensor  # of the mirrored pictures, (N, heads, h, w)
    tokens: Tensor  # (N, P, D), of length 1
    values: Tensor  # (N, P, D), the last block's
    wrote: Tensor  # (N, heads, D), what each head adds to the CLS token
    border: Tensor  # bool (P,), the outermost patches


def look_at(backbone, images, mean, std):
    """images uint8 (N, 3, H, W)."""
    parts = [[] for _ in range(5)]
    for batch in images.split(32):
        x = normalize(batch, mean, std)
        found = (
            cls_attention(backbone, x),
            cls_attention(backbone, x.flip(-1)),
            F.normalize(patch_features(backbone, x).flatten(1, 2), dim=-1),
            _values(backbone, x),
            _wrote(backbone, x),
        )
        for part, one in zip(parts, found, strict=True):
            part.append(one.cpu())
    parts = [torch.cat(part) for part in parts]
    border = torch.ones(parts[0].shape[2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return Look(*parts, border.flatten())


def _values(backbone, x):
    """The last block's values of the patches: (N, P, D)."""
    values = queries_keys_values(backbone, x)[2].transpose(1, 2).flatten(2)  # (N, T, D)
    return values[:, backbone.num_prefix_tokens :]


@torch.no_grad()
def _wrote(backbone, x):
    """What each head adds to the CLS token, but for the bias: (N, heads, D)."""
    row = full_attention(backbone, x)[:, :, 0]  # (N, heads, T)
    values = queries_keys_values(backbone, x)[2]
    weight = backbone.model.blocks[-1].attn.proj.weight.unflatten(1, (row.shape[1], -1))
    return torch.einsum("bht,bhtd,chd->bhc", row, values, weight)


# criteria: Look -> (heads,), the higher the better


def large_share(look):
    """The share of the patches above the uniform level."""
    maps = look.maps.flatten(2)
    return (maps > maps.mean(-1, keepdim=True)).float().mean((0, 2))


def far_from_mean(look):
    """The distance from the mean of the heads' maps, each of mass 1."""
    shares = F.normalize(look.maps.flatten(2), p=1, dim=-1)
    return (shares - shares.mean(1, keepdim=True)).abs().sum(-1).mean(0)


def mass_inside(look):
    """The share of the mass that is not on the border."""
    shares = F.normalize(look.maps.flatten(2), p=1, dim=-1)
    return shares[..., ~look.border].sum(-1).mean(0)


def mirror_agreement(look):
    return _like(look.maps, look.mirrored.flip(-1))


def first_component(look):
    """Like the first component of the picture's patches, larger inside than on the border."""
    x = look.tokens - look.tokens.mean(1, keepdim=True)
    directions = torch.linalg.svd(x, full_matrices=False).Vh[:, 0]
    return _like(look.maps, _figure(torch.einsum("npd,nd->np", x, directions), look.border))


def two_means(look):
    """Like the one of two clusters of the picture's patches that lies less on the border."""
    x = look.tokens
    first = x.mean(1, keepdim=True)  # the centres: the patch least like the mean, and its opposite
    one = x[torch.arange(len(x)), (x * first).sum(-1).argmin(1)]
    two = x[torch.arange(len(x)), (x * one[:, None]).sum(-1).argmin(1)]
    for _ in range(10):
        of_one = ((x * (one - two)[:, None]).sum(-1) > 0).float()[..., None]
        one = F.normalize((x * of_one).sum(1), dim=-1)
        two = F.normalize((x * (1 - of_one)).sum(1), dim=-1)
    return _like(look.maps, _figure(of_one[..., 0], look.border))


def values_inside(look):
    """Like the direction of the values from the border's mean to that of the inside."""
    inner, outer = look.values[:, ~look.border], look.values[:, look.border]
    return _like(look.maps, look.values @ (inner.mean((0, 1)) - outer.mean((0, 1))))


def unlike_border(look):
    """Like the patches' distance from the picture's mean border patch."""
    border = look.tokens[:, look.border].mean(1, keepdim=True)
    return _like(look.maps, 1 - F.cosine_similarity(look.tokens, border, dim=-1))


def _figure(values, border):
    """(N, P) with the sign that makes the border the smaller."""
    sign = (values[:, ~border].mean(1) - values[:, border].mean(1)).sign()
    return values * sign[:, None]


def _like(maps, others):
    """Mean correlation of each head's maps with one map a picture, or as many: (heads,)."""
    maps = maps.flatten(2)
    others = others.flatten(2) if others.ndim == 4 else others[:, None].expand_as(maps)
    maps = maps - maps.mean(-1, keepdim=True)
    others = others - others.mean(-1, keepdim=True)
    return F.cosine_similarity(maps, others, dim=-1).mean(0)


CRITERIA = {
    "inside + 0.1 agreement, varied heads (`choose_head`)": lambda look: foreground(look.maps),
    "top quarter inside": lambda look: inside(look.maps),
    "mass inside": mass_inside,
    "values, border to inside": values_inside,
    "first component of the patches": first_component,
    "two clusters of the patches": two_means,
    "unlike the border's patches": unlike_border,
    "agreement with the other heads": lambda look: agreement(look.maps),
    "agreement with the mirror image": mirror_agreement,
    "low entropy": lambda look: -entropy(look.maps),
    "high entropy": lambda look: entropy(look.maps),
    "few patches above the mean": lambda look: -large_share(look),
    "many patches above the mean": large_share,
    "far from the heads' mean": far_from_mean,
    "near the heads' mean": lambda look: -far_from_mean(look),
    "variety": lambda look: variety(look.maps),
    "norm of what it writes": lambda look: look.wrote.norm(dim=-1).mean(0),
    "little of what it writes": lambda look: -look.wrote.norm(dim=-1).mean(0),
}


def choices(backbone, images, masks, mean, std):
    """Above blind of all heads, of the head that each criterion chooses, and of rivals."""
    look = look_at(backbone, images, mean, std)
    worth = above_blind(look.maps, patch_masks(masks, look.maps.shape[2:]))
    chosen = {name: worth[of(look).argmax()].item() for name, of in CRITERIA.items()}
    rivals = {"a random head": worth.mean().item(), "head 0": worth[0].item()}
    return {"heads": worth.tolist(), "chosen": chosen | rivals}


def choice_table(found):
    """Markdown: a row a criterion, a column a teacher, the best mean first.

    found: name -> `choices`. A ratio below -1 counts as -1: where the best head is hardly
    above 0, a bad one may be many times as bad.
    """
    best = {name: max(of["heads"]) for name, of in found.items()}

    def ratios(criterion):
        return [max(-1, found[name]["chosen"][criterion] / best[name]) for name in found]

    names = list(next(iter(found.values()))["chosen"])
    names.sort(key=lambda name: -sum(ratios(name)))
    lines = [f"| | {' | '.join(found)} | mean |", "| --- " * (2 + len(found)) + "|"]
    lines.append(f"| best head | {' | '.join(f'{of:.2f}' for of in best.values())} | |")
    for name in names:
        cells = [f"{ratio:.2f}" for ratio in ratios(name)]
        mean = sum(ratios(name)) / len(found)
        lines.append(f"| {name} | {' | '.join(cells)} | {mean:.3f} |")
    return "\n".join(lines)


def taken_out(backbone, probes, maps, masks):
    """What is lost without each head: (20-NN, above blind of the mean map), both (heads,)."""

    def knn():
        gallery, queries = probes.features(backbone)
        predicted = knn_predict(gallery, probes.gallery_labels, queries)
        return accuracy(predicted, probes.query_labels)[0]

    def mean_map(heads):
        return above_blind(maps[:, heads].mean(1, keepdim=True), masks).item()

    every = range(maps.shape[1])
    whole = knn(), mean_map(list(every))
    lost = []
    for head in every:
        with without_head(backbone, head):
            without = knn()
        others = [other for other in every if other != head]
        lost.append((whole[0] - without, whole[1] - mean_map(others)))
    return torch.tensor(lost).unbind(1)


def table_of_heads(columns):
    """Markdown: a row a head; columns name -> (heads,)."""
    lines = ["| head | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    for head, row in enumerate(torch.stack(list(columns.values()), 1)):
        cells = " | ".join(f"{value:.2f}" for value in row)
        lines.append(f"| {head} | {cells} |")
    return "\n".join(lines)


def heads_of_shapes(teacher, limit=None):
    """The table of a teacher of the embedded pictures: name -> (heads,)."""
    probes = open_probes(teacher.config, limit)
    masks = probes.masks[:300]
    maps = probes.attention(teacher, 300)
    objects = patch_masks(masks, maps.shape[2:])
    columns = head_table(maps, objects)
    columns["20-NN lost"], columns["mean map lost"] = taken_out(
        teacher.model, probes, maps, objects
    )
    return columns


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teachers", nargs="+", help="names or paths for load_teacher")
    parser.add_argument("--horses", type=Path, help="folder of images/ and masks/")
    parser.add_argument("--size", type=int, help="pixels a side of the horses")
    parser.add_argument("--limit", type=int, default=4000, help="gallery images for the 20-NN")
    parser.add_argument("--n", type=int, default=300, help="pictures to choose by")
    parser.add_argument("--out", type=Path, help="all numbers, as JSON")
    args = parser.parse_args(argv)
    found, tables = {}, {}
    for name in args.teachers:
        teacher = load_teacher(name)
        look = {"mean": teacher.transform.mean, "std": teacher.transform.std}
        label = Path(name).name
        if teacher.config and teacher.config.dataset == "shapes":
            data = Shapes(args.n, seed=1, size=teacher.config.eval_size)
            found[f"{label}, shapes"] = choices(teacher.model, data.images, data.masks, **look)
            tables[label] = heads_of_shapes(teacher, args.limit)
        if args.horses:
            size = args.size or teacher.transform.size
            images, masks = (part[: args.n] for part in read_horses(args.horses, size))
            found[f"{label}, horses"] = choices(teacher.model, images, masks, **look)
            if label not in tables:
                maps = attention(teacher.model, images, **look)
                tables[label] = head_table(maps, patch_masks(masks, maps.shape[2:]))
    if found:
        print(choice_table(found))
    for label, columns in tables.items():
        print(f"\nThe heads of {label}:\n\n{table_of_heads(columns)}")
    if args.out:
        tables = {k: {name: of.tolist() for name, of in v.items()} for k, v in tables.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"choices": found, "heads": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
