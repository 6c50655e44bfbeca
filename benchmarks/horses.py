"""Do heads find horses? `python benchmarks/horses.py photos demo --size 96 --data DIR`.

Teachers (what `load_teacher` takes) on photographs with masks of Weizmann's horses, 251 of the
328, which nobody trains on: the middle square of each, at the teacher's own `eval_size`, or at
--size. One head for all pictures, chosen without masks and the best of them by each measure: above
blind, AUC, Jaccard of the 60 % mass mask. Beside it the same network untrained (seeds 0 to 2), the
same heads against the masks of other pictures, the mean of the heads, as many blobs in the middle
as it has heads, one blob, and maps that no network made. Then the patches' tokens: their first
principal component over all horses and how unlike the picture's border each is, which no mask made,
and what no head can be expected to have, since masks made it: a linear readout, fitted to the masks
of other horses. All three also of what the stem gives, of the same untrained and of a patch's mean
colour; the readout of where it lies, too.

DIR holds images/*.jpg and masks/*.png of the same names; an object lies where a mask is white.
horses_96.json beside this file holds what README and notebook 06 quote.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2.functional import pil_to_tensor

from dino_lib.data.images import read_image
from dino_lib.data.transforms import middle_square, normalize
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.baselines import BASELINES
from dino_lib.measure.components import principal_components
from dino_lib.measure.features import patch_features
from dino_lib.measure.heads import choose_head
from dino_lib.measure.masks import (
    above_blind,
    auc,
    away_from_border,
    blob,
    center_blobs,
    jaccard_one_head,
    mass_mask,
    patch_masks,
    upsample,
)
from dino_lib.run.build import build_student
from dino_lib.teachers.load import load_teacher

DATA = Path("data/weizmann_horses")
FOLDS = 5
MEASURES = ("above blind", "AUC", "Jaccard")


def read_horses(folder, size):
    """Middle squares: images uint8 (N, 3, size, size), masks bool (N, size, size)."""
    images, masks = [], []
    for path in sorted(Path(folder, "images").glob("*.jpg")):
        image = read_image(path)
        mask = read_image(Path(folder, "masks", f"{path.stem}.png"), channels=1)
        images.append(pil_to_tensor(middle_square(image, size)))
        masks.append(pil_to_tensor(middle_square(mask, size))[0] > 127)
    return torch.stack(images), torch.stack(masks)


def attention(backbone, images, mean, std):
    """The last block's maps, (N, heads, h, w)."""
    parts = [cls_attention(backbone, normalize(part, mean, std)) for part in images.split(32)]
    return torch.cat(parts).cpu()


@torch.no_grad()
def stem(backbone, x):
    """What the blocks get, without the patches' places: x (N, C, H, W) -> (N, h, w, D)."""
    return backbone.model.patch_embed(x).reshape(len(x), *backbone.grid(x.shape[2:]), -1)


def readout(tokens, objects):
    """How much of an object a linear readout finds in tokens, with the masks of other pictures.

    tokens (N, h, w, D), objects bool (N, h, w) -> maps (N, 1, h, w). Logistic regression on four
    fifths of the pictures gives the maps of the rest. A patch of the ground counts by how many
    objects lie in its place, so that the place tells nothing, as in above blind.
    """
    found = torch.zeros(objects.shape)
    for fold in range(FOLDS):
        held = torch.arange(len(objects)) % FOLDS == fold
        known = objects[~held]
        weight = torch.where(known, 1.0, known.float().mean(0))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(tokens[~held].flatten(0, 2).numpy(), known.flatten().numpy(),
                  logisticregression__sample_weight=weight.flatten().numpy())  # fmt: skip
        values = model.decision_function(tokens[held].flatten(0, 2).numpy())
        found[held] = torch.from_numpy(values).sigmoid().float().view(-1, *objects.shape[1:])
    return found[:, None]


def unlike_the_border(tokens, k=5):
    """How unlike the border a patch is: one less its mean cosine with the k border patches of its
    own picture that are most like it. tokens (N, h, w, D) -> maps (N, 1, h, w).

    It asks no mask and, of mean colours, no network: a blind rival of what goes by the border.
    """
    border = ~away_from_border(tokens.shape[1:3])
    tokens = F.normalize(tokens, dim=-1)
    alike = torch.einsum("nhwd,nbd->nhwb", tokens, tokens[:, border])
    return (1 - alike.topk(k, -1).values.mean(-1)).clamp(min=0)[:, None]


def places(n, grid):
    """Where each patch lies, and its squares: (N, h, w, 5)."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in grid), indexing="ij")
    return torch.stack([y, x, y * y, x * x, x * y], -1).expand(n, -1, -1, -1)


def score(maps, masks):
    """Measure -> one number a head."""
    objects = patch_masks(masks, maps.shape[2:])
    covered = upsample(mass_mask(maps), masks.shape[1:])
    found = above_blind(maps, objects), auc(maps, objects), jaccard_one_head(covered, masks)
    return {name: of.tolist() for name, of in zip(MEASURES, found, strict=True)}


def row(name, maps, masks, *, choose=True):
    """A row of the table: each head's scores, and which was chosen without masks."""
    head = choose_head(maps) if choose else None
    return {"what": name, "chosen": head, **score(maps, masks)}


def rows_of(name, folder, size=None, limit=None):
    """A teacher's rows, and what stands beside it."""
    teacher = load_teacher(name)
    size = size or teacher.transform.size
    images, masks = (part[:limit] for part in read_horses(folder, size))
    look = {"mean": teacher.transform.mean, "std": teacher.transform.std}
    maps = attention(teacher.model, images, **look)
    n, n_heads, *grid = maps.shape
    found = [row(name, maps, masks)]
    found.append(row("its heads, other pictures' masks", maps, masks.roll(1, 0)))
    found.append(row("the mean of its heads", maps.mean(1, keepdim=True), masks, choose=False))
    x = normalize(images, **look)
    objects = patch_masks(masks, grid)
    told = {"its tokens": patch_features(teacher, x), "its stem": stem(teacher.model, x)}
    for seed in range(3) if teacher.config else ():
        config = dataclasses.replace(teacher.config, seed=seed, pretrained=False, weights=None)
        untrained = build_student(config).backbone.eval()
        maps = attention(untrained, images, **look)
        found.append(row(f"untrained, seed {seed}", maps, masks))
        told[f"its tokens, untrained, seed {seed}"] = patch_features(untrained, x)
        told[f"its stem, untrained, seed {seed}"] = stem(untrained, x)
    blobs = {f"{n_heads} blobs": center_blobs(n_heads, grid), "one blob": blob(grid)[None]}
    for what, fixed in blobs.items():
        found.append(row(what, fixed.expand(n, -1, -1, -1), masks, choose=False))
    for what, baseline in BASELINES.items():
        found.append(row(what, baseline(images, grid)[:, None], masks, choose=False))
    told["the mean colour"] = F.adaptive_avg_pool2d(images / 255, grid).movedim(1, -1)
    for what, of in told.items():
        maps = principal_components(of)
        maps = maps - maps.amin((2, 3), keepdim=True)  # a mask of the mass takes nothing negative
        found.append(row(f"first component: {what}", maps, masks, choose=False))
        found.append(row(f"unlike the border: {what}", unlike_the_border(of), masks, choose=False))
    told["where a patch lies"] = places(n, grid)
    for what, of in told.items():
        maps = readout(of, objects)
        found.append(row(f"readout with masks: {what}", maps, masks, choose=False))
    about = {"teacher": name, "size": size, "grid": grid, "pictures": n}
    return [{**about, **one} for one in found]


def as_table(rows):
    """Markdown: chosen head / best head."""
    lines = ["| | " + " | ".join(f"{name}: chosen; best" for name in MEASURES) + " |"]
    lines.append("| --- " * (1 + len(MEASURES)) + "|")
    for one in rows:
        cells = []
        for name in MEASURES:
            chosen = "" if one["chosen"] is None else f"{one[name][one['chosen']]:.2f}"
            cells.append(f"{chosen}; {max(one[name]):.2f}".removeprefix("; "))
        lines.append(f"| {one['what']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teachers", nargs="+", help="names or paths for load_teacher")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of images/ and masks/")
    parser.add_argument("--size", type=int, help="pixels a side, for a finer grid")
    parser.add_argument("--limit", type=int, help="only the first pictures")
    parser.add_argument("--out", type=Path, help="all heads' numbers, as JSON")
    args = parser.parse_args(argv)
    if not (args.data / "images").is_dir():
        print(f"skipped: no horses in {args.data}; name their folder with --data")
        return 0
    found = []
    for name in args.teachers:
        rows = rows_of(name, args.data, args.size, args.limit)
        found += rows
        first = rows[0]
        high, wide = first["grid"]
        print(f"\n{name}: {first['pictures']} horses, {first['size']} px, {high} x {wide} patches")
        print(f"\n{as_table(rows)}", flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
