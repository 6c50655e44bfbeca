"""A run from the reader's pieces: the finished ones beside them, and a batch's views of theirs."""

from collections.abc import Callable

import torch
from torch import Tensor

from dino_lib.augment import BLUR_SIGMA, JITTER_P, Recipe, View
from dino_lib.course.head_views import finished_views
from dino_lib.course.loss import finished_center, finished_loss
from dino_lib.course.one_image import crop, saturation, views
from dino_lib.course.step import finished_step
from dino_lib.data import colours
from dino_lib.data.batch_views import CROP_TRIES, apply_where, crop_boxes
from dino_lib.head import DINOHead
from dino_lib.schedules import cosine_schedule
from dino_lib.teacher import ema_update, make_teacher

# what a run takes of the reader's pieces, in the order of the course
FINISHED = {
    "crop": crop,
    "saturation": saturation,
    "views": views,
    "Head": DINOHead,
    "forward_views": finished_views,
    "dino_loss": finished_loss,
    "update_center": finished_center,
    "make_teacher": make_teacher,
    "ema_update": ema_update,
    "cosine_schedule": cosine_schedule,
    "train_step": finished_step,
}


def batch_views(recipe: Recipe, crop: Callable, saturation: Callable,
                views: Callable) -> Callable[[Tensor], list[Tensor]]:
    """A function: uint8 (B, 3, H, W) -> the recipe's views, float32 (B, 3, h, w), globals first.

    The crop, the saturation and the list of views may be the reader's. The other colours are made
    for the whole batch, in one order for all its images.
    """
    kinds = [lambda x, view=view: _one_view(x, view, recipe, crop, saturation)
             for view in recipe.views]
    local = kinds[-1] if recipe.n_local else kinds[0]
    return lambda images: list(views(images, kinds[0], kinds[1], local, recipe.n_local))


def _one_view(images: Tensor, view: View, recipe: Recipe, crop: Callable,
              saturation: Callable) -> Tensor:
    n = len(images)
    tries, corner = torch.rand(n, 2 * CROP_TRIES), torch.rand(n, 2)
    boxes = crop_boxes(tries, corner, images.shape[2:], view.scale)
    pairs = zip(images / 255, boxes.int().tolist(), strict=True)
    x = torch.stack([crop(image, box, view.size) for image, box in pairs])
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(-1), x)

    def saturate(x: Tensor, factor: Tensor) -> Tensor:
        return torch.stack([saturation(image, f) for image, f in zip(x, factor.tolist(),
                                                                     strict=True)])

    jitter = torch.rand(n) < JITTER_P
    operations = [colours.adjust_brightness, colours.adjust_contrast, saturate, colours.adjust_hue]
    for k in torch.randperm(4).tolist():
        strength = recipe.color_jitter[k]
        factor = torch.empty(n).uniform_(-strength, strength)
        apply_where(jitter, x, operations[k], factor if k == 3 else (1 + factor).clamp(min=0))
    apply_where(torch.rand(n) < recipe.gray_p, x, saturate, torch.zeros(n))
    sigma = torch.empty(n).uniform_(*BLUR_SIGMA)
    apply_where(torch.rand(n) < view.blur_p, x, colours.blur, sigma)
    apply_where(torch.rand(n) < view.solarize_p, x, colours.solarize)
    mean, std = (torch.tensor(row)[:, None, None] for row in (recipe.mean, recipe.std))
    return (x - mean) / std
