"""Checkpoints: saved atomically, resumed exactly; teachers: saved as safetensors, loaded by name or path.

Nothing that could run code is ever unpickled: full checkpoints hold tensors and plain values and are read with
`weights_only`, teachers are safetensors with their settings as JSON in the header. Both carry the SHA-256 of all their
bytes, in the same file, so that one rename brings file and checksum.
"""

import contextlib
import hashlib
import json
import os
import re
from argparse import Namespace
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torchvision.transforms import v2

from dino_lib.augment import IMAGENET
from dino_lib.backbone import create_backbone
from dino_lib.data.images import to_channels
from dino_lib.run.config import Config

FORMAT = 2  # of full checkpoints; 1 had no checksum
TEACHER_FORMATS = ("1", "2")  # of teachers; 1, that of the teachers in the package, has no checksum
SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")  # the last 73 bytes of a checkpoint, behind what torch wrote
ZEROS = 64 * "0"
NAMES = f"step_{8 * '[0-9]'}.pt"  # and no copy that someone made beside
SHIPPED = Path(__file__).parents[1] / "teachers"


class UnknownFormat(ValueError):
    """A whole file, of a format that this version does not read."""


def save_checkpoint(folder, step, state, keep=2, scores=None):
    """Write `state` to folder/step_XXXXXXXX.pt, drop all but the `keep` newest and the best; returns the path.

    scores: {step: score}; the best is the checkpoint with the highest one, of equals the earliest. Nothing is dropped
    before the new file is whole and on the disk. A newer file than this one is damaged, or the run would have gone on
    from it: it is renamed to .damaged, so as not to count. Raises OSError if that fails; the folder's parent must
    exist, or a mount that has vanished would be taken for a new folder.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for part in folder.glob("*.part"):  # of a save that was killed: it may be what fills the disk
        part.unlink()
    path = folder / f"step_{step:08d}.pt"
    with write_atomically(path) as file:
        sealed = _Sealed(file)
        torch.save({"format": FORMAT, "step": step, **state}, sealed)
        sealed.close()
    for newer in folder.glob(NAMES):
        if newer.name > path.name:
            newer.replace(newer.with_suffix(".damaged"))
    saved = {int(old.stem.removeprefix("step_")): old for old in sorted(folder.glob(NAMES))}
    scored = [old for old in saved if old in (scores or {})]
    kept = [*saved][-keep:] + ([max(scored, key=scores.get)] if scored else [])
    for old in saved.keys() - kept:
        saved[old].unlink()
    return path


def read_checkpoint(path, device="cpu"):
    """The dict in a checkpoint. Raises ValueError if a bit of it is not as it was written, or the file is no checkpoint
    at all; UnknownFormat, a ValueError too, if it is of another format.
    """
    path, sealed = Path(path), True
    try:
        sealed, whole = _verify(path)
        if sealed and not whole:
            raise ValueError("its SHA-256 is another")
        state = torch.load(path, map_location=device, weights_only=True)
        found = state["format"]
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = _reason(error) if sealed else "its last line, the SHA-256, is missing"
        raise ValueError(f"{path} is damaged ({reason})") from error
    if found != FORMAT:
        raise UnknownFormat(f"{path} has format {found!r}; this version reads format {FORMAT}")
    if not sealed:
        raise ValueError(f"{path} is damaged (its last line, the SHA-256, is missing)")
    return state


def _verify(path):
    """(whether the file ends with a checksum, whether that is the checksum of what stands before it)."""
    digest, left = hashlib.sha256(), path.stat().st_size - 73
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        seal = SEAL.fullmatch(file.read())
    return bool(seal), bool(seal) and seal[1].decode() == digest.hexdigest()


def _reason(error):
    """One line on an error of our own or the system's; of a foreign one, whose text may fill a screen, its type."""
    return str(error) if type(error) is ValueError or isinstance(error, OSError) else type(error).__name__


def load_newest(folder, device="cpu"):
    """The newest whole checkpoint of a folder as a dict, or None if there is none.

    A file that is cut short or damaged is reported and passed over for the one before it. An unknown format
    raises ValueError, and so does a folder whose every checkpoint is damaged: starting afresh would hide a loss.
    """
    paths = sorted(Path(folder).glob(NAMES), reverse=True)
    for path in paths:
        try:
            return read_checkpoint(path, device)
        except UnknownFormat:
            raise
        except ValueError as error:
            print(f"{error}; trying the one before it")
    if paths:
        raise ValueError(f"none of the {len(paths)} checkpoints in {folder} can be read: move them away to start anew")
    return None


def save_teacher(path, backbone, config, **about):
    """The teacher's backbone as safetensors, with the run's settings and `about` (plain values) in its header.

    The header holds the SHA-256 of the file too, taken with 64 zeros in its place.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    header = {"format": TEACHER_FORMATS[-1], "config": config.to_json(), "about": json.dumps(about), "sha256": ZEROS}
    data = save(tensors, header)
    with write_atomically(path) as file:
        file.write(data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1))


@contextlib.contextmanager
def write_atomically(path):
    """`with write_atomically(path) as file`: a binary file that takes the place of `path` once it is on the disk.

    After an error or an interrupt `path` is as it was before; after a kill a file of its name and .part lies there too.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent):  # the new name, and the folder's own if that is new
        with contextlib.suppress(OSError):  # Windows opens no folders, and some mounts do not sync them
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


class _Sealed:
    """What torch.save writes to: hashed on its way to the file, its SHA-256 as the last line. Errors wait for `close`,
    since torch would answer one with an error of its own."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data):
        if self.error is None:
            try:
                self.digest.update(data)
                self.file.write(data)
            except BaseException as error:  # of an interrupt as well
                self.error = error
        return len(data)

    def flush(self):
        pass

    def close(self):
        if self.error is not None:
            raise self.error
        self.file.write(b"\nsha256 %s\n" % self.digest.hexdigest().encode())


def build_backbone(config, *, pretrained=None):
    """The backbone that a config describes; (C, H, W) inputs have one channel for each entry of `mean`."""
    options = dict(config.backbone_options)
    if len(config.mean) != 3:
        options["in_chans"] = len(config.mean)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    pretrained = config.pretrained if pretrained is None else pretrained
    return create_backbone(config.backbone, pretrained=pretrained, conv_stem=config.conv_stem, **options)


def eval_transform(size, mean, std):
    """PIL image -> (C, size, size) normalised: the shorter side to `size`, then the middle square."""
    return v2.Compose([
        v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
    ])


def as_seen(image, transform, patch_size, size=None):
    """What a teacher sees of a PIL image: (that picture, as PIL image; the same normalised, (C, H, W)).

    transform: the teacher's own, of `eval_transform`. Without `size` it crops as it always does. With it the whole
    image is seen, resized to about size x size pixels in all: its aspect is kept but for rounding both sides to whole
    patches of patch_size (height, width). Raises ValueError on another transform and on a size below one patch.
    """
    steps = getattr(transform, "transforms", [])
    start = next((i for i, step in enumerate(steps) if isinstance(step, v2.ToImage)), None)
    if start is None:
        raise ValueError("a teacher's .transform must be made by checkpoint.eval_transform, to show what it crops")
    if size is None:
        picture = v2.Compose(steps[:start])(image)
    elif size < max(patch_size):
        raise ValueError(f"size={size} is less than one patch of {patch_size} pixels")
    else:
        ratio = size / (image.width * image.height) ** 0.5
        sides = [max(1, round(side * ratio / p)) * p for side, p in zip(image.size, patch_size[::-1], strict=True)]
        picture = image.resize(sides, Image.Resampling.BICUBIC)
    picture = to_channels(picture, len(steps[-1].mean))
    return picture, v2.Compose(steps[start:])(picture)


def load_teacher(name_or_path, device="cpu"):
    """A teacher to look at: a Backbone in eval mode, without gradients, with `.transform(PIL image)`.

    name_or_path: a shipped teacher ("demo"), a run's folder or its teacher.safetensors or one of its checkpoints
    (step_XXXXXXXX.pt), an official facebookresearch/dino checkpoint (.pth, teacher or full), or "timm:MODEL"
    (pretrained weights, downloaded).
    `.config` holds the run's settings (None for others), `.about` what its header says of it. Raises
    FileNotFoundError naming what can be loaded, ValueError on weights that do not fit.
    """
    name = str(name_or_path)
    if name.startswith("timm:"):
        backbone = create_backbone(name.removeprefix("timm:"), pretrained=True)
        data = timm.data.resolve_model_data_config(backbone.model)
        return _ready(backbone, device, data["input_size"][-1], data["mean"], data["std"])
    path = _find(name)
    if path.match(NAMES):
        return _load_from_checkpoint(path, device)
    return _load_official(path, device) if path.suffix in (".pth", ".pt") else _load_safetensors(path, device)


def _find(name):
    shipped = SHIPPED / name / "teacher.safetensors"
    candidates = [shipped] if "/" not in name and shipped.exists() else []
    candidates += [Path(name), Path(name) / "teacher.safetensors"]
    for path in candidates:
        if path.is_file():
            return path
    names = sorted(p.parent.name for p in SHIPPED.glob("*/teacher.safetensors"))
    raise FileNotFoundError(
        f"no teacher {name!r}: expected a shipped one ({', '.join(names) or 'none here'}), a run's folder with "
        f"teacher.safetensors in it, a .safetensors file, an official .pth checkpoint, or timm:MODEL")


def _load_safetensors(path, device):
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if header.get("format") not in TEACHER_FORMATS:
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads format "
                         f"{' and '.join(TEACHER_FORMATS)}")
    if header["format"] != "1":
        found = header.get("sha256", "")
        if hashlib.sha256(path.read_bytes().replace(found.encode(), ZEROS.encode(), 1)).hexdigest() != found:
            raise ValueError(f"{path} is damaged: its SHA-256 is another")
    try:
        config, about = Config.from_json(header["config"]), json.loads(header["about"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has settings that cannot be read: {error}") from error
    return _ready_for(config, state, path, device, about)


def _load_from_checkpoint(path, device):
    state = read_checkpoint(path)
    try:
        config = Config(**state["config"])
        weights = {key.removeprefix("backbone."): value for key, value in state["teacher"].items()
                   if key.startswith("backbone.") and torch.is_tensor(value)}
        about = {"step": state["step"], "images_seen": state["step"] * config.batch_size}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the state of a run: {error!r}") from error
    return _ready_for(config, weights, path, device, about)


def _ready_for(config, state, path, device, about):
    try:
        backbone = build_backbone(config, pretrained=False)
    except Exception as error:  # whatever timm makes of odd options
        raise ValueError(f"{path} asks for a network that cannot be built: {error}") from error
    _load_strictly(backbone, state, path)
    return _ready(backbone, device, config.eval_size, config.mean, config.std, config, about)


def _load_official(path, device):
    """Official ViT checkpoints: the architecture is read off the weights."""
    try:
        with torch.serialization.safe_globals([Namespace]):  # full checkpoints hold their arguments in one
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain values "
                         f"({type(error).__name__})") from error
    state = state.get("teacher", state) if isinstance(state, dict) else state
    state = {re.sub(r"^(module\.)?(backbone\.)?", "", str(key)): value for key, value in state.items()
             if torch.is_tensor(value)} if isinstance(state, dict) else {}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    if "patch_embed.proj.weight" not in state:
        raise ValueError(f"{path} holds no official DINO ViT: no patch_embed.proj.weight among {list(state)[:5]}")
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        backbone = create_backbone("vit_base_patch16_224", img_size=side, patch_size=patch, embed_dim=width,
                                   depth=depth, num_heads=width // 64)
    except Exception as error:  # whatever timm makes of odd shapes
        raise ValueError(f"{path} holds no official DINO ViT: {error!r}") from error
    _load_strictly(backbone.model, state, path)
    return _ready(backbone, device, side, *IMAGENET)


def _load_strictly(module, state, path):
    expected = {key: value.shape for key, value in module.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    misfit = [f"{k} {tuple(state[k].shape)} for {tuple(expected[k])}" for k in expected.keys() & state.keys()
              if state[k].shape != expected[k]]
    if missing or unexpected or misfit:
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}, wrong shapes {misfit}")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # sparse, quantised
        raise ValueError(f"{path} does not fit: {error}") from error


def _ready(backbone, device, size, mean, std, config=None, about=None):
    backbone.transform = eval_transform(size, mean, std)  # a Module too, so before eval()
    backbone.config, backbone.about = config, about or {}
    return backbone.requires_grad_(False).eval().to(device)
