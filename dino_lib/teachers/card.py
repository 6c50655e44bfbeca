"""The README of an exported teacher: what it is, how it is used, what it saw, whose data that was.

Figures come from the run's own report.json, else from its history; nothing is measured anew.
"""

import json
import os
from pathlib import Path

from dino_lib import __version__
from dino_lib.backbone import Backbone, ConvStem
from dino_lib.run.config import Config
from dino_lib.run.history import knn_scores, read_history
from dino_lib.run.teacher_file import Teacher
from dino_lib.teachers.load import HUB, find_teacher

IMAGENETS = "ImageNet's terms hold: research and education, nothing commercial"
DATA = {  # whose pictures a run saw, and what their terms are
    "shapes": "pictures of made-up creatures that dino_lib draws itself, MIT licence",
    "stl10": f"STL-10 (Coates, Ng and Lee 2011), photographs taken from ImageNet; {IMAGENETS}",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), of 80 Million Tiny Images, which were gathered from "
               "the web; no licence is stated",
    "caltech101": "Caltech-101 (Li, Andreetto, Ranzato and Perona 2022, CC BY 4.0, "
                  "doi:10.22002/D1.20086), without the class Faces_easy",
    "imagenette": f"Imagenette (Howard 2019), ten classes of ImageNet; {IMAGENETS}",
}
OWN = ("a folder of images of whoever made this. **To fill in before you publish: whose images "
       "these are, what their owners allow, and whether there are people in them**")
USE = {
    "onnx": """
`model.onnx` takes `images` (batch, {channels}, height, width), float32, normalised as below, of any
multiples of {high} x {wide} pixels. It gives `feature` (batch, {width}), the CLS token after the
final norm, and `attention` (batch, {heads}, rows, columns): the CLS token's attention to the
patches in the last block, of each head; CLS and registers hold the rest of 1.

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
feature, attention = session.run(["feature", "attention"], {{"images": images}})
```
""",
    "timm": """
```python
import timm
{stem}model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True{argument}).eval()
feature = {feature}  # (batch, {width})
```

`images`: (batch, {channels}, height, width), float32, normalised as below.
""",
    "huggingface": """
```python
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, ViTModel
model = ViTModel.from_pretrained("PATH/OF/THIS/FOLDER", add_pooling_layer=False).eval()
process = AutoImageProcessor.from_pretrained("PATH/OF/THIS/FOLDER")
square = ImageOps.fit(picture, ({size}, {size}), Image.Resampling.BICUBIC)
seen = model(process(square, return_tensors="pt")["pixel_values"])
feature = seen.last_hidden_state[:, 0]  # (batch, {width})
```

So the features are those of the teacher. Without the square the processor crops what it has
resized, half a pixel beside. Another size needs `interpolate_pos_encoding=True`, and Hugging Face
resamples the position embeddings by another kernel than timm: the features differ a little.
""",
}
LIBRARY = {"onnx": "onnx", "timm": "timm", "huggingface": "transformers"}


def model_card(name_or_path: str | os.PathLike, teacher: Teacher, layout: str) -> str:
    """The README.md (Markdown, with the Hub's header) of a teacher in a layout of `export`."""
    name = _name(name_or_path)
    header = [
        "---", f"library_name: {LIBRARY[layout]}", "pipeline_tag: image-feature-extraction",
        "tags: [dino, self-distillation, vision]", "---",
    ]
    parts = ["\n".join(header), f"# {name}", _what(teacher), "## Use", _use(teacher, layout)]
    parts += ["## What it expects", _expects(teacher), "## Data and terms", _data(teacher)]
    if teacher.config is not None:
        parts += ["## Training", _training(teacher)]
    scores = _scores(name_or_path)
    if scores:
        parts += ["## Measured", scores]
    parts += ["## Limits", LIMITS]
    return "\n\n".join(part.strip() for part in parts) + "\n"


LIMITS = """
- A feature says what pictures have in common, not what they show. What it follows (colour,
  background, a watermark) is for you to measure on your own pictures.
- An attention map shows where a token took from, not why; some heads look at the background.
- Nothing was done against biases of the training pictures, and nothing was tried for decisions
  about people.
"""


def _name(name_or_path: str | os.PathLike) -> str:
    """A teacher's name without where it lies on this machine."""
    name = str(name_or_path)
    return name if name.startswith(HUB) else Path(name).expanduser().resolve().name


def _what(teacher: Teacher) -> str:
    backbone, vit = teacher.model, teacher.model.model
    millions = sum(p.numel() for p in vit.parameters()) / 1e6
    words = [f"{backbone.num_features} wide", f"{millions:.2f} million parameters"]
    blocks = getattr(vit, "blocks", None)
    if blocks is not None:
        high, wide = backbone.patch_size
        words = [f"{len(blocks)} blocks", *words, f"patches of {high} x {wide} pixels"]
        heads = _heads(backbone)
        words += [f"{heads} heads"] if heads else []
    if isinstance(getattr(vit, "patch_embed", None), ConvStem):
        words.append("a convolutional stem")
    if getattr(vit, "reg_token", None) is not None:
        words.append(f"{vit.reg_token.shape[1]} registers")
    whence = ("the teacher of a run of DINO, self-distillation with no labels ([Caron et al. 2021]"
              "(https://arxiv.org/abs/2104.14294))") if teacher.config is not None else (
              f"weights of {teacher.about.get('what', 'another project')}")
    return (f"A {type(vit).__name__} ({', '.join(words)}): {whence}. "
            f"Exported by dino_lib {__version__}.")


def _heads(backbone: Backbone) -> int:
    """How many heads the last block has; 0 where it doesn't say."""
    return getattr(getattr(backbone.model.blocks[-1], "attn", None), "num_heads", 0)


def _use(teacher: Teacher, layout: str) -> str:
    backbone = teacher.model
    high, wide = backbone.patch_size
    is_stem = isinstance(getattr(backbone.model, "patch_embed", None), ConvStem)
    return USE[layout].format(
        channels=len(teacher.transform.mean), high=high, wide=wide, size=teacher.transform.size,
        width=backbone.num_features, heads=_heads(backbone) if layout == "onnx" else 0,
        stem="from stem import ConvStem  # in this folder\n" if is_stem else "",
        argument=", embed_layer=ConvStem" if is_stem else "",
        feature=_feature(backbone),
    )


def _feature(backbone: Backbone) -> str:
    """What `Backbone.forward` computes, in timm's words."""
    if not backbone.has_cls:
        return "model.forward_head(model.forward_features(images), pre_logits=True)"
    cls = "model.forward_features(images)[:, 0]"
    return f"model.fc_norm({cls})" if hasattr(backbone.model, "fc_norm") else cls


def _expects(teacher: Teacher) -> str:
    seen = teacher.transform
    kind = "an RGB" if len(seen.mean) == 3 else "a grey"
    return (f"The middle square of {kind} picture, resized to {seen.size} x {seen.size} pixels "
            "(bicubic, antialiased), in [0, 1], less the mean "
            f"{_numbers(seen.mean)} by the deviation {_numbers(seen.std)}.")


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _data(teacher: Teacher) -> str:
    if teacher.config is None:
        what = teacher.about.get("what", "weights")
        return (f"This was loaded from {what}, trained elsewhere. The terms of those weights and "
                "of their data hold here too: **name both before you publish**.")
    text = f"It was trained on {DATA.get(teacher.config.dataset, OWN)}. No label was used."
    if teacher.config.pretrained or teacher.config.weights:
        text += (" It started from weights trained elsewhere, whose terms hold here too: **name "
                 "them before you publish**.")
    return text


def _training(teacher: Teacher) -> str:
    config: Config = teacher.config
    rows = {
        "updates": teacher.about.get("step"), "images seen": teacher.about.get("images_seen"),
        "epochs": config.epochs, "batch": config.batch_size, "seed": config.seed,
        "views": f"2 x {config.global_size} px + {config.n_local} x {config.local_size} px",
        "prototypes (K)": config.out_dim, "peak learning rate": config.lr,
        "momentum of the teacher": f"{config.momentum} to {config.momentum_end}",
        "teacher's temperature": config.teacher_temp, "precision": config.precision,
    }
    lines = [f"| {what} | {value} |" for what, value in rows.items() if value is not None]
    return "\n".join(["| setting | value |", "| --- | --- |", *lines])


MEASURED = {  # of report.json: key -> what it is
    "knn": "20-NN accuracy", "linear": "linear probe", "nmi": "clusters against classes (NMI)",
    "above_blind": "attention above blind, head chosen without masks",
}


def _scores(name_or_path: str | os.PathLike) -> str:
    """Report or history of the run as a table, beside the untrained network; "" without either."""
    _, run = find_teacher(name_or_path)
    if run is None:
        return ""
    whose = ("untrained", "color_histogram", "trained")
    head = ["| | untrained | colour histogram | trained |", "| --- | --- | --- | --- |"]
    if (run / "report.json").is_file():
        report = json.loads((run / "report.json").read_text("utf-8"))
        rows = {what: [report.get(f"{key}_{who}") for who in whose]
                for key, what in MEASURED.items()}
        told = "As the run's `report.json` has it; one run."
    else:
        scores = knn_scores(read_history(run))
        trained = [score for step, score in scores.items() if step > 0]
        rows = {"k-NN accuracy": [scores.get(0), None, trained[-1] if trained else None]}
        told = "As the run's own evaluation has it, on a part of the images; one run."
    lines = ["| " + " | ".join([what, *("" if v is None else f"{v:.3f}" for v in values)]) + " |"
             for what, values in rows.items() if values[-1] is not None]
    return "\n".join([told, "", *head, *lines]) if lines else ""
